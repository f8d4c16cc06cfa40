//! Measures a shaped store: how long a transfer and a small request take, and what the proxy
//! costs.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::try_join_all;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectStore as _, ObjectStoreExt as _, PutPayload};

use super::ShapedStore;
use crate::link::LinkProfile;
use crate::weed::{ACCESS_KEY, BUCKET, REGION, SECRET_KEY};

/// The size of the transfer in bytes.
const TRANSFER: usize = 64 << 20;
/// How many transfers, of which the median is taken.
const TRANSFERS: u32 = 5;
/// In how many parts, when it comes in parts at once.
const PARTS: usize = 8;
/// How many small requests, one after another.
const REQUESTS: usize = 50;

/// What was measured over one link.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The link.
    pub profile: LinkProfile,
    /// How long the transfer takes by the bandwidth alone, without the latency; none if it has
    /// no bound.
    pub nominal: Option<Duration>,
    /// How long 64 MiB took, latency included: the median.
    pub transfer: Duration,
    /// How long it took in eight parts at once: the median.
    pub parts: Duration,
    /// The processor time of the proxy for it in one piece, on all its threads: the mean.
    pub processor: Duration,
    /// How long a request for one byte took: the shortest, the median and the longest.
    pub request: [Duration; 3],
}

impl fmt::Display for Measured {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let [low, median, high] = self.request.map(ms);
        let name = self.profile.to_string();
        write!(out, "{name:>6}: 64 MiB in {:6.1} ms", ms(self.transfer))?;
        match self.nominal {
            Some(nominal) => write!(out, " (nominal {:6.1})", ms(nominal))?,
            None => write!(out, " {:16}", "")?,
        }
        write!(out, ", in 8 parts {:7.1};", ms(self.parts))?;
        write!(out, " processor {:5.1} ms;", ms(self.processor))?;
        write!(out, " 1 byte in {median:5.2} ms ({low:.2} to {high:.2})")
    }
}

/// Measures the link `profile` with real requests to the real server.
pub fn measure(store: &ShapedStore, profile: LinkProfile) -> io::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Measurement::new(store)?.run(store, profile))
}

struct Measurement {
    direct: AmazonS3,
    linked: AmazonS3,
}

impl Measurement {
    fn new(store: &ShapedStore) -> io::Result<Self> {
        let linked = client(store.proxy.address())?;
        Ok(Self { direct: client(store.weed.address())?, linked })
    }

    async fn run(&self, store: &ShapedStore, profile: LinkProfile) -> io::Result<Measured> {
        let (large, small) = (Path::from("large"), Path::from("small"));
        let payload = PutPayload::from(vec![b'x'; TRANSFER]);
        self.direct.put(&large, payload).await?;
        self.direct.put(&small, PutPayload::from_static(b"x")).await?;
        // Connections are made and the server's caches are warm before the link is shaped.
        store.proxy.shape(LinkProfile::NONE);
        self.get(&large, TRANSFER).await?;
        store.proxy.shape(profile);
        self.get(&small, 1).await?;

        let before = processor_time_of_proxy()?;
        let mut transfers = Vec::new();
        for _ in 0..TRANSFERS {
            transfers.push(self.get(&large, TRANSFER).await?);
        }
        let processor = processor_time_of_proxy()?.saturating_sub(before) / TRANSFERS;
        let mut parts = Vec::new();
        for _ in 0..TRANSFERS {
            parts.push(self.get_parts(&large).await?);
        }
        let mut requests = Vec::new();
        for _ in 0..REQUESTS {
            requests.push(self.get(&small, 1).await?);
        }
        let nominal = profile.bandwidth().map(|bandwidth| bandwidth.time_of(TRANSFER));
        let ([_, transfer, _], [_, parts, _]) = (spread(transfers), spread(parts));
        let request = spread(requests);
        Ok(Measured { profile, nominal, transfer, parts, processor, request })
    }

    /// How long it takes to get an object of so many bytes.
    async fn get(&self, path: &Path, length: usize) -> io::Result<Duration> {
        let start = Instant::now();
        complete(count(self.linked.get(path).await?).await?, length)?;
        Ok(start.elapsed())
    }

    /// The same in parts at once.
    async fn get_parts(&self, path: &Path) -> io::Result<Duration> {
        let start = Instant::now();
        let length = (TRANSFER / PARTS) as u64;
        let parts = (0..PARTS as u64).map(|part| async move {
            let range = part * length..(part + 1) * length;
            let options = GetOptions::new().with_range(Some(range));
            count(self.linked.get_opts(path, options).await?).await
        });
        complete(try_join_all(parts).await?.iter().sum(), TRANSFER)?;
        Ok(start.elapsed())
    }
}

async fn count(got: GetResult) -> io::Result<usize> {
    let mut pieces = got.into_stream();
    let mut length = 0;
    while let Some(piece) = pieces.next().await {
        length += piece?.len();
    }
    Ok(length)
}

fn complete(got: usize, length: usize) -> io::Result<()> {
    let short = || io::Error::other(format!("{got} bytes of {length} came"));
    (got == length).then_some(()).ok_or_else(short)
}

fn client(address: SocketAddr) -> io::Result<AmazonS3> {
    let builder = AmazonS3Builder::new()
        .with_endpoint(format!("http://{address}"))
        .with_allow_http(true)
        .with_region(REGION)
        .with_bucket_name(BUCKET)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY);
    Ok(builder.build()?)
}

/// The shortest, the median and the longest.
fn spread(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    [at(0), at(times.len() / 2), at(times.len().saturating_sub(1))]
}

/// What all proxies of this process have used, by the names of their threads.
fn processor_time_of_proxy() -> io::Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.trim() != "proxy" {
            continue;
        }
        // The first of its numbers is the time on a processor, in nanoseconds.
        let times = fs::read_to_string(thread.join("schedstat"))?;
        let time = times.split(' ').next().and_then(|time| time.parse::<u64>().ok());
        nanos += time.ok_or_else(|| io::Error::other(format!("not times: {times:?}")))?;
    }
    Ok(Duration::from_nanos(nanos))
}
