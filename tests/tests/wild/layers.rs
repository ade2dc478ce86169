//! Bodies and layers of unusual shape: chunked, without a length, listed twice, foreign.

use std::sync::Arc;

use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule};
use edgepull_tests::image::{self, Layout, host, media};
use serde_json::{Value, json};

use super::blobs::{elsewhere, layer, layer_always};
use super::row::{Left, PASSWORD, Row, Stage, USER, faulty, holds, lone, row};

/// The usual image with its manifest's layers changed.
fn with_layers(edit: impl FnOnce(&mut Vec<Value>)) -> Layout {
    let layout = image::hello_single(host());
    let mut manifest: Value =
        serde_json::from_slice(&layout.read(&layout.digest("latest"))).unwrap();
    edit(manifest["layers"].as_array_mut().unwrap());
    let blob = layout.put_json(&manifest);
    layout.tag("latest", blob.descriptor(media::MANIFEST));
    layout
}

pub(crate) fn rows() -> Vec<Row> {
    vec![
        faulty("chunked", "faults: chunked", |_| {
            vec![Rule::always(Action::Chunked)]
        }),
        faulty("chunked and cut", "blobs: chunked; short body", |w| {
            let mut raw =
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7a120\r\n".to_vec();
            raw.extend(&w.hello.read(&w.layer())[..500_000]);
            vec![layer(w, Action::Raw(raw), 1)]
        })
        .asks(1, 1, 5, 0),
        faulty(
            "neither length nor chunks",
            "public registries: Ollama: no Content-Length",
            |_| vec![Rule::on(Kind::Blob, Action::NoLength)],
        ),
        row(
            "the same layer twice",
            "blobs: same blob wanted twice",
            |_| {
                let layout = image::hello();
                let manifest = layout.manifest("latest", &host());
                let document: Value = serde_json::from_slice(&layout.read(&manifest)).unwrap();
                let layers = document["layers"].as_array().unwrap();
                let (first, diff) = (layers[0].clone(), 0);
                // The config must list it twice, too.
                let config = document["config"]["digest"].as_str().unwrap();
                let mut config: Value = serde_json::from_slice(&layout.read(config)).unwrap();
                let same = config["rootfs"]["diff_ids"][diff].clone();
                config["rootfs"]["diff_ids"]
                    .as_array_mut()
                    .unwrap()
                    .push(same);
                let config = layout.put_json(&config);
                let mut document = document.clone();
                document["layers"].as_array_mut().unwrap().push(first);
                document["config"] = config.descriptor(media::CONFIG);
                let blob = layout.put_json(&document);
                layout.tag("latest", blob.descriptor(media::MANIFEST));
                Stage::of(Faulty::start(layout, []))
            },
        )
        .asks(1, 0, 4, 0),
        row(
            "a foreign layer, at its own address",
            "blobs: foreign layer with urls",
            |w| {
                let publisher = Faulty::start(Arc::clone(&w.hello), []);
                let digest = w.layer();
                let url = format!("http://{}/v2/there/blobs/{digest}", elsewhere(&publisher));
                let layout = with_layers(|layers| {
                    layers[1]["urls"] = json!([url]);
                    layers[1]["mediaType"] =
                        json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
                });
                let auth = Auth::Basic(USER.to_owned(), PASSWORD.to_owned());
                let absent = Rule::on(Kind::Blob, Action::status(404)).what(&digest);
                let registry = Faulty::start_with(layout, auth, [absent]);
                Stage::of(registry).creds().watch(publisher)
            },
        )
        .asks(2, 0, 5, 0)
        .check(|seen, _| {
            let there = |path: &str| path.contains("/there/");
            let leaked = seen
                .requests
                .iter()
                .any(|r| there(&r.path) && r.authorized());
            holds(!leaked, "credentials went to the publisher")
        }),
        lone("an absent layer", "status codes: 404", |w| {
            vec![layer_always(w, Action::status(404))]
        })
        .fails("not_found")
        .left(Left::Partial)
        .asks(1, 1, 2, 0)
        .heals(),
    ]
}
