//! What may go wrong between a client and a server, as data.

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is answered with this status; the server never sees it.
    Status(u16),
    /// It is answered as S3 answers when there is no such object.
    Missing,
    /// It is taken and never answered.
    Stall,
    /// The answer's body stops after this many bytes, with the connection left open.
    StallBody(u64),
    /// The connection is closed after this many bytes of the answer's body.
    CutBody(u64),
    /// The byte at this offset of the answer's body is another one.
    FlipByte(u64),
}

/// A fault and the requests that it happens to.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    method: Option<String>,
    path: String,
    skip: u64,
    times: u64,
}

impl Rule {
    /// A fault that happens to every request.
    pub fn new(fault: Fault) -> Self {
        Self { fault, method: None, path: String::new(), skip: 0, times: u64::MAX }
    }

    /// Only requests of this method, such as `GET`.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.into());
        self
    }

    /// Only requests whose path contains this.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        self.path = part.into();
        self
    }

    /// Lets this many requests pass first.
    #[must_use]
    pub fn after(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }

    /// Happens this many times, then never again.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// The fault, if the rule is for this request and it is its turn. Counts the request.
    pub(crate) fn apply(&mut self, method: &str, path: &str) -> Option<Fault> {
        let matches = self.method.as_deref().is_none_or(|wanted| wanted == method);
        if !matches || !path.contains(&self.path) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.fault)
    }
}
