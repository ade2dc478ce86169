//! Layout to registry, byte for byte.

use serde_json::Value;

use super::layout::Layout;
use crate::http::{self, Body, Response};
use crate::registry::Registry;

impl Layout {
    /// Pushes what `name` points to as `repository:tag`; its digest.
    #[track_caller]
    pub fn push(&self, registry: &Registry, name: &str, repository: &str, tag: &str) -> String {
        let top = self
            .find(name)
            .unwrap_or_else(|| panic!("no {name} in {}", self.path().display()));
        let pusher = Pusher {
            layout: self,
            registry,
            repository,
        };
        pusher.document(&top, tag);
        top["digest"].as_str().unwrap().to_owned()
    }
}

struct Pusher<'a> {
    layout: &'a Layout,
    registry: &'a Registry,
    repository: &'a str,
}

impl Pusher<'_> {
    fn document(&self, descriptor: &Value, name: &str) {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = self.layout.read(digest);
        // Schema 1 and other strangers have no children to send first.
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        for child in document["manifests"].as_array().into_iter().flatten() {
            self.document(child, child["digest"].as_str().unwrap());
        }
        for part in std::iter::once(&document["config"])
            .chain(document["layers"].as_array().into_iter().flatten())
            .filter_map(|part| part["digest"].as_str())
        {
            self.blob(part);
        }
        let media_type = descriptor["mediaType"].as_str().unwrap();
        let answer = self.ask(
            "PUT",
            &format!("/v2/{}/manifests/{name}", self.repository),
            &[("Content-Type", media_type)],
            &Body::Bytes(&bytes),
        );
        assert_eq!(answer.status, 201, "manifest {digest}: {}", text(&answer));
    }

    fn blob(&self, digest: &str) {
        let here = format!("/v2/{}/blobs/{digest}", self.repository);
        if self.ask("HEAD", &here, &[], &Body::Empty).status == 200 {
            return;
        }
        let uploads = format!("/v2/{}/blobs/uploads/", self.repository);
        let begun = self.ask("POST", &uploads, &[], &Body::Empty);
        assert_eq!(begun.status, 202, "upload: {}", text(&begun));
        let location = begun.header("location").expect("202 carries a location");
        let target = location
            .strip_prefix(&format!("http://{}", self.registry.host()))
            .unwrap_or(location);
        let join = if target.contains('?') { '&' } else { '?' };
        let path = self.layout.blob_path(digest);
        let answer = self.ask(
            "PUT",
            &format!("{target}{join}digest={digest}"),
            &[("Content-Type", "application/octet-stream")],
            &Body::File(&path),
        );
        assert_eq!(answer.status, 201, "blob {digest}: {}", text(&answer));
    }

    fn ask(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &Body<'_>,
    ) -> Response {
        let mut headers = headers.to_vec();
        if let Some(authorization) = self.registry.authorization() {
            headers.push(("Authorization", authorization));
        }
        http::request(self.registry.host(), method, target, &headers, body)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}\n{}", self.registry.log()))
    }
}

fn text(answer: &Response) -> String {
    format!(
        "{} {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    )
}
