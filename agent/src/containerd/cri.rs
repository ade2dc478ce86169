//! The one question for containerd's CRI plugin: which snapshotter kubelet's images use.
//!
//! CRI's `ImageFsInfo` tells the directory of its snapshotter in every version; the
//! messages are written out here (cri-api runtime/v1 api.proto), because they are
//! three fields of a very large API.

use std::time::Duration;

use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use super::client::{DEFAULT_SNAPSHOTTER, Engine, Snapshotter};

/// CRI answers from memory; where it hangs, its word is done without.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct ImageFsInfoRequest {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ImageFsInfoResponse {
    #[prost(message, repeated, tag = "1")]
    image_filesystems: Vec<FilesystemUsage>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct FilesystemUsage {
    #[prost(message, optional, tag = "2")]
    fs_id: Option<FilesystemIdentifier>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct FilesystemIdentifier {
    #[prost(string, tag = "1")]
    mountpoint: String,
}

impl Engine {
    /// The snapshotter of the CRI plugin; `None` if there is no CRI here or it does not
    /// say, which is no failure: the namespace's default is used then.
    pub(super) async fn cri_snapshotter(&self, known: &[Snapshotter]) -> Option<String> {
        let mut grpc = tonic::client::Grpc::new(self.channel());
        let ask = async {
            grpc.ready().await.ok()?;
            let path = PathAndQuery::from_static("/runtime.v1.ImageService/ImageFsInfo");
            let codec: ProstCodec<ImageFsInfoRequest, ImageFsInfoResponse> = ProstCodec::default();
            let request = tonic::Request::new(ImageFsInfoRequest {});
            grpc.unary(request, path, codec).await.ok()
        };
        let answer = tokio::time::timeout(PATIENCE, ask).await.ok()??;
        let mountpoints: Vec<String> = answer
            .into_inner()
            .image_filesystems
            .into_iter()
            .filter_map(|usage| usage.fs_id)
            .map(|id| id.mountpoint)
            .collect();
        named_by(&mountpoints, known)
    }
}

/// The snapshotter that lives in one of `mountpoints`. Where CRI uses several (one a
/// runtime), the usual one counts.
fn named_by(mountpoints: &[String], known: &[Snapshotter]) -> Option<String> {
    let mut found = known.iter().filter(|snapshotter| {
        mountpoints.iter().any(|mountpoint| {
            let by_root = snapshotter
                .root
                .as_ref()
                .is_some_and(|root| root == std::path::Path::new(mountpoint));
            by_root
                || mountpoint.ends_with(&format!(
                    "io.containerd.snapshotter.v1.{}",
                    snapshotter.name
                ))
        })
    });
    let first = found.next()?;
    let usual = found.find(|snapshotter| snapshotter.name == DEFAULT_SNAPSHOTTER);
    Some(usual.unwrap_or(first).name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&str]) -> Vec<Snapshotter> {
        names
            .iter()
            .map(|name| Snapshotter {
                name: (*name).to_owned(),
                ..Snapshotter::default()
            })
            .collect()
    }

    #[test]
    fn the_directory_names_the_snapshotter() {
        let all = known(&["native", "overlayfs", "zfs"]);
        let at = |names: &[&str]| -> Vec<String> {
            names
                .iter()
                .map(|name| format!("/var/lib/containerd/io.containerd.snapshotter.v1.{name}"))
                .collect()
        };
        assert_eq!(named_by(&at(&["native"]), &all).as_deref(), Some("native"));
        assert_eq!(
            named_by(&at(&["native", "overlayfs"]), &all).as_deref(),
            Some("overlayfs")
        );
        assert_eq!(named_by(&at(&["stargz"]), &all), None);
        assert_eq!(named_by(&[], &all), None);
    }
}
