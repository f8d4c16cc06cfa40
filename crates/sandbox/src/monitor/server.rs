//! Serves the clients of a monitor.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::super::options::Stdin;
use super::super::protocol::{
    Failure, Reply, Request, Started, StdinFlow, StreamPosition, WindowSize,
};
use super::attach::{Input, converse};
use super::conn::Conn;
use super::shared::{Counted, Shared, Stage, first_program, run_failure};
use super::{exec, freeze};

/// The maximum number of concurrent connections.
const CONNECTIONS_MAX: usize = 256;
/// The pause after accept(2) fails, e.g. for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections forever. Each is a task of its own, which ends with its client or its
/// process.
pub(super) async fn run(shared: Rc<Shared>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Rc::clone(&shared);
                tokio::task::spawn_local(async move {
                    let Some(counted) = Counted::of(&shared.connections, CONNECTIONS_MAX) else {
                        return;
                    };
                    // Ignore errors: the client has disconnected.
                    serve(&shared, stream).await.ok();
                    drop(counted);
                    shared.left.notify_waiters();
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(shared: &Rc<Shared>, stream: UnixStream) -> io::Result<()> {
    let mut conn = Conn::new(stream);
    let request = match conn.request().await {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) => {
            let message = format!("the request can't be read: {error}");
            return conn.reply(&Reply::Failed(Failure::Other { message })).await;
        }
    };
    let reply = match request {
        Request::Start => start(shared).await,
        Request::Status => Ok(Reply::Status(shared.status())),
        Request::Signal { number } => shared.signal(number).await.map(|()| Reply::Done),
        Request::Wait => {
            tokio::select! {
                exit = shared.ended() => exit.map(Reply::Exit).ok_or(Failure::NotRunning),
                // A waiting client sends nothing more, so this is its disconnect.
                () = conn.anything() => return Ok(()),
            }
        }
        Request::Exec { process, stdin, output, flow } => {
            exec::serve(shared, &mut conn, &process, (stdin, flow), output).await;
            return Ok(());
        }
        Request::Attach { size, stdin, shown, flow } => {
            return attach(shared, &mut conn, (stdin, flow), size, shown).await;
        }
        Request::Freeze { limit_ms, within_ms } => {
            let limit = Duration::from_millis(limit_ms);
            let within = within_ms.map_or(limit, Duration::from_millis);
            freeze::serve(shared, &mut conn, within, limit).await;
            return Ok(());
        }
    };
    conn.reply(&reply.unwrap_or_else(Reply::Failed)).await
}

async fn start(shared: &Shared) -> Result<Reply, Failure> {
    if shared.has_ended() {
        return Err(Failure::NotRunning);
    }
    if shared.stage.get() != Stage::Created {
        return Err(Failure::Started);
    }
    shared.stage.set(Stage::Starting);
    let outcome = match shared.calls.runtime.start() {
        Ok(call) => shared.calls.make(call).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => {
            shared.stage.set(Stage::Started);
            Ok(Reply::Started(Started::of(shared.init, StdinFlow::Unbounded)))
        }
        Err(error) => {
            let failure = run_failure(&error, &first_program(&shared.layout));
            if let Failure::Exec { code, .. } = &failure {
                shared.stage.set(Stage::NotStartable(*code));
            }
            // The created process would wait forever for its start.
            super::shared::send(&shared.handle, super::super::signals::SIGKILL).ok();
            Err(failure)
        }
    }
}

async fn attach(
    shared: &Rc<Shared>,
    conn: &mut Conn,
    (stdin, flow): (Stdin, StdinFlow),
    size: Option<WindowSize>,
    shown: Option<StreamPosition>,
) -> io::Result<()> {
    let mut output = match shared.first.attach(shown) {
        Ok(output) => output,
        Err(lost) => {
            let message = format!(
                "{lost} bytes of what its first program has printed are not kept for who joins it \
                 again; its log has them"
            );
            return conn.reply(&Reply::Failed(Failure::Other { message })).await;
        }
    };
    if let (Input::Terminal(terminal), Some(size)) = (&shared.first.input, size) {
        terminal.resize(size).ok();
    }
    conn.reply(&Reply::Started(Started::of(shared.init, flow))).await?;
    let exit = async { shared.ended().await.map_or(-1, |exit| exit.code) };
    let none = Input::None;
    let input = match (stdin, &shared.first.input) {
        (Stdin::Open, input) | (Stdin::Empty, input @ Input::Terminal(_)) => input,
        (Stdin::Empty, _) => &none,
    };
    let signal = async |number| {
        shared.signal(number).await.ok();
    };
    converse(conn, async || output.next().await, exit, (input, flow), signal).await;
    Ok(())
}
