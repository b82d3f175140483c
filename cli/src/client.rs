//! A client of a running machine: one HTTP request over its Unix socket.

use std::path::Path;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use vmm::api::ErrorBody;

/// Sends a request to the machine at `socket` and returns the response's body.
pub fn request<Answer: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.with_context(|| {
            format!("no machine answers at {}; is it running with --api-socket?", socket.display())
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "moat")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(refused) => bail!("{}", refused.error),
                Err(_) => bail!("the machine answered {status}"),
            }
        }
        serde_json::from_slice(&body)
            .context("cannot parse the machine's answer; is it another version of moat?")
    })
}
