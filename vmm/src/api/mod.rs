//! The control API: HTTP and JSON on a Unix socket, served by a thread of its own.
//!
//! | route                  | body                      | answer                |
//! |------------------------|---------------------------|-----------------------|
//! | `GET /machine`         |                           | [`MachineStatus`]     |
//! | `PUT /devices/{id}`    | [`ResizeRequest`]         | [`Resizing`]          |
//! | `PUT /pause`           |                           | [`MachineStatus`]     |
//! | `PUT /resume`          |                           | [`MachineStatus`]     |
//!
//! The answer to a refused request has a 4xx status, or 503 while the machine is not running, and an
//! [`ErrorBody`].

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use log::{error, warn};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, oneshot};

use crate::machine::{MachineControl, MachineStatus, PauseError, ResizeRefused, Resizing};
use crate::socket::{SocketError, SocketFile};
use crate::threads::{self, Role};

/// Asks for a device's size to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// Bytes that the driver is asked to have plugged.
    pub requested: u64,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The reason, for a user to read.
    pub error: String,
}

/// Why the API cannot be served.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Its socket cannot be created.
    #[error("--api-socket: {0}")]
    Socket(#[from] SocketError),
    /// The host cannot provide a thread or a descriptor.
    #[error("cannot serve the API: {0}")]
    Host(#[from] io::Error),
}

/// How many clients are served at a time; others wait.
const MAX_CLIENTS: usize = 32;
/// How long a client is served at most.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before the next attempt if a client cannot be accepted, as when this process has no
/// descriptors left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The largest body of a request.
const MAX_BODY_BYTES: usize = 64 << 10;

/// The API of a machine, served until dropped.
pub struct ApiServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    // Removed last, so that a socket at its path is always served.
    _socket: SocketFile,
}

impl ApiServer {
    /// Serves `control` on a socket at `path`.
    pub fn start(path: &Path, control: MachineControl) -> Result<Self, ApiError> {
        let (listener, socket) = SocketFile::serve(path)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name(Role::Api.name())
            .on_thread_start(|| Role::Api.confine_signals())
            .build()?;
        let listener = {
            let _runtime = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = threads::spawn(Role::Api, move || {
            runtime.block_on(async {
                tokio::select! {
                    never = serve(listener, router(control)) => match never {},
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), _socket: socket })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the API's thread panicked");
        }
    }
}

/// Serves clients, each in a task of its own, so that none holds up another.
async fn serve(listener: UnixListener, router: Router) -> Infallible {
    let room = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut refused = false;
    loop {
        let place = Arc::clone(&room).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    warn!("the API cannot accept a client now: {error}");
                }
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        refused = false;
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            // An error or a timeout concerns this client only.
            let _ = tokio::time::timeout(CLIENT_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

fn router(control: MachineControl) -> Router {
    Router::new()
        .route("/machine", get(machine))
        .route("/devices/{id}", put(resize))
        .route("/pause", put(pause))
        .route("/resume", put(resume))
        .fallback(async || Refused(StatusCode::NOT_FOUND, "unknown path".into()))
        .method_not_allowed_fallback(async || {
            let reason = "this path does not support this method".into();
            Refused(StatusCode::METHOD_NOT_ALLOWED, reason)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(control)
}

async fn machine(State(control): State<MachineControl>) -> Result<Json<MachineStatus>, Refused> {
    control
        .status()
        .map(Json)
        .map_err(|error| Refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

async fn pause(State(control): State<MachineControl>) -> Result<Json<MachineStatus>, Refused> {
    change_state(move || control.pause()).await
}

async fn resume(State(control): State<MachineControl>) -> Result<Json<MachineStatus>, Refused> {
    change_state(move || control.resume()).await
}

/// Pausing may take as long as a device's request, so it must not block the thread that serves the clients.
async fn change_state(
    change: impl FnOnce() -> Result<MachineStatus, PauseError> + Send + 'static,
) -> Result<Json<MachineStatus>, Refused> {
    let changed = tokio::task::spawn_blocking(change).await;
    let changed =
        changed.map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    changed.map(Json).map_err(|error| {
        let status = match error {
            PauseError::NotRunning(_) => StatusCode::SERVICE_UNAVAILABLE,
            PauseError::Clocks(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused(status, error.to_string())
    })
}

async fn resize(
    State(control): State<MachineControl>,
    id: Result<UrlPath<String>, PathRejection>,
    body: Result<Json<ResizeRequest>, JsonRejection>,
) -> Result<Json<Resizing>, Refused> {
    let UrlPath(id) = id.map_err(|rejection| Refused(rejection.status(), rejection.body_text()))?;
    let Json(request) =
        body.map_err(|rejection| Refused(rejection.status(), rejection.body_text()))?;
    control.resize(&id, request.requested).map(Json).map_err(|error| {
        let status = match error {
            ResizeRefused::UnknownDevice { .. } => StatusCode::NOT_FOUND,
            ResizeRefused::Size { .. } => StatusCode::BAD_REQUEST,
            ResizeRefused::NotRunning(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refused(status, error.to_string())
    })
}

struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1 })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// The status and the body of the answer to a request.
    fn ask(path: &Path, request: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(path).unwrap();
        let length = body.len();
        write!(
            stream,
            "{request} HTTP/1.1\r\nhost: moat\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
    }

    #[test]
    fn a_refused_request_is_answered_in_json() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("api");
        // A machine that has not started yet.
        let server = ApiServer::start(&path, MachineControl::default()).unwrap();
        let huge = format!("{{\"requested\": 1{}}}", " ".repeat(MAX_BODY_BYTES));
        for (request, body, status) in [
            ("GET /machine", "", 503),
            ("PUT /devices/mem0", "{\"requested\": 0}", 503),
            ("PUT /devices/mem0", "{\"requested\": -1}", 422),
            ("PUT /devices/mem0", "{\"requested\": 0, \"colour\": 1}", 422),
            ("PUT /devices/mem0", "{", 400),
            ("PUT /devices/mem0", &huge, 413),
            ("PUT /devices/%ff", "{\"requested\": 0}", 400),
            ("GET /nowhere", "", 404),
            ("GET /", "", 404),
            ("POST /machine", "", 405),
            ("DELETE /devices/mem0", "", 405),
            ("PUT /pause", "", 503),
            ("PUT /resume", "", 503),
            ("GET /pause", "", 405),
        ] {
            let (found, body) = ask(&path, request, body);
            assert_eq!(found, status, "{request}: {body}");
            let ErrorBody { error } = serde_json::from_str(&body).unwrap();
            assert!(!error.is_empty(), "{request}");
        }
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn silent_clients_hold_up_no_other() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("api");
        let _server = ApiServer::start(&path, MachineControl::default()).unwrap();
        let _silent: Vec<_> =
            (1..MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(ask(&path, "GET /machine", "").0, 503);
    }
}
