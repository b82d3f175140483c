//! The control API: HTTP and JSON on a Unix socket, served by a thread of its own.
//!
//! | route                  | body                      | answer                |
//! |------------------------|---------------------------|-----------------------|
//! | `GET /machine`         |                           | [`MachineStatus`]     |
//! | `PUT /devices/{id}`    | [`ResizeRequest`]         | [`Resizing`]          |
//!
//! What is refused is answered with a 4xx status and an [`ErrorBody`].

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::machine::{MachineControl, MachineStatus, ResizeRefused, Resizing};

/// Asks for a device's size to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// Bytes that the driver shall have plugged.
    pub requested: u64,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For people.
    pub error: String,
}

/// An API that cannot be served.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Something else is there.
    #[error("{} exists and is no socket; give --api-socket another path", .0.display())]
    NotASocket(PathBuf),
    /// Somebody else serves it.
    #[error("{} is served by another process; give --api-socket another path", .0.display())]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("cannot serve the API on {}: {source}", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// The API of a machine, served until dropped.
pub struct ApiServer {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves `control` on a socket at `path`.
    pub fn start(path: &Path, control: MachineControl) -> Result<Self, ApiError> {
        let bind_error = |source| ApiError::Bind { path: path.into(), source };
        clear_stale_socket(path)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(bind_error)?;
        let listener = {
            let _runtime = runtime.enter();
            tokio::net::UnixListener::bind(path).map_err(bind_error)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("api".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // An error of the listener ends the API, not the machine.
                    _ = async { axum::serve(listener, router(control)).await } => {}
                    _ = stopped => {}
                }
            });
        });
        let thread = thread.map_err(bind_error)?;
        Ok(Self { path: path.into(), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody serves any more.
fn clear_stale_socket(path: &Path) -> Result<(), ApiError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ApiError::NotASocket(path.into()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ApiError::InUse(path.into()));
    }
    std::fs::remove_file(path).map_err(|source| ApiError::Bind { path: path.into(), source })
}

fn router(control: MachineControl) -> Router {
    Router::new()
        .route("/machine", get(machine))
        .route("/devices/{id}", put(resize))
        .with_state(control)
}

async fn machine(State(control): State<MachineControl>) -> Result<Json<MachineStatus>, Refused> {
    control
        .status()
        .map(Json)
        .map_err(|error| Refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

async fn resize(
    State(control): State<MachineControl>,
    UrlPath(id): UrlPath<String>,
    body: Result<Json<ResizeRequest>, JsonRejection>,
) -> Result<Json<Resizing>, Refused> {
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
