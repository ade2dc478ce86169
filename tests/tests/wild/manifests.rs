//! Tags, manifests, indexes, as public and self-hosted registries serve them.

use std::sync::Arc;

use edgepull_tests::faulty::{Action, Faulty, Kind, Request, Rule};
use edgepull_tests::image::{self, Layout, digest_of, host, media};
use serde_json::Value;

use super::row::{Left, Row, Stage, again, faulty, holds, row};

fn on_head(action: Action) -> Vec<Rule> {
    vec![Rule::on(Kind::Tag, action).method("HEAD")]
}

fn content_type(value: Option<&str>) -> Vec<Rule> {
    let action = Action::ContentType(value.map(str::to_owned));
    vec![
        Rule::on(Kind::Tag, action.clone()),
        Rule::on(Kind::Manifest, action),
    ]
}

fn served(layout: Layout) -> Stage {
    Stage::of(Faulty::start(layout, []))
}

/// The usual image with the bytes of its index and its manifest changed by `edit`.
fn rewritten(edit: fn(&str) -> String) -> Layout {
    let layout = image::hello();
    let old = layout.manifest("latest", &host());
    let new = layout.put(edit(&text(&layout, &old)).as_bytes());
    let index = text(&layout, &layout.digest("latest"));
    // The entry's size changes with its bytes.
    let mut document: Value = serde_json::from_str(&index).unwrap();
    for entry in document["manifests"].as_array_mut().unwrap() {
        if entry["digest"] == old.as_str() {
            entry["digest"] = new.digest.clone().into();
            entry["size"] = new.size.into();
        }
    }
    let index = layout.put(edit(&document.to_string()).as_bytes());
    layout.tag("latest", index.descriptor(media::INDEX));
    layout
}

fn text(layout: &Layout, digest: &str) -> String {
    String::from_utf8(layout.read(digest)).unwrap()
}

fn without_media_type(text: &str) -> String {
    let mut document: Value = serde_json::from_str(text).unwrap();
    document.as_object_mut().unwrap().remove("mediaType");
    document.to_string()
}

/// As some publishers write: every `/` escaped, the key in lower case, indented.
fn oddly_written(text: &str) -> String {
    let mut document: Value = serde_json::from_str(text).unwrap();
    let kind = document["mediaType"].clone();
    document.as_object_mut().unwrap().remove("mediaType");
    document["mediatype"] = kind;
    let pretty = serde_json::to_string_pretty(&document).unwrap();
    pretty.replace('/', "\\/")
}

/// All six types in one header, nothing weighted: what the pickiest registries need.
fn asks_badly(request: &Request) -> bool {
    let mut accepts = request.headers.iter().filter(|(name, _)| name == "accept");
    let (first, second) = (accepts.next(), accepts.next());
    let all = [
        media::INDEX,
        media::MANIFEST,
        media::DOCKER_LIST,
        media::DOCKER_MANIFEST,
    ];
    let good = first.is_some_and(|(_, value)| {
        all.iter().all(|kind| value.contains(kind)) && !value.contains(";q=")
    });
    !good || second.is_some()
}

fn accepts_lists(request: &Request) -> bool {
    let accept = request.header("accept").unwrap_or_default();
    accept.contains(media::INDEX) || accept.contains(media::DOCKER_LIST)
}

pub(crate) fn rows() -> Vec<Row> {
    let lie = || Some(digest_of(b"something else"));
    vec![
        faulty("nothing wrong", "basics", |_| vec![]),
        faulty("nothing wrong, into a layout", "basics; blobs: same blob wanted twice", |_| vec![]).in_layout(),
        again("nothing new", "public registries: refresh by HEAD", |_| vec![]),
        again("HEAD 405", "manifests: HEAD refused; self-hosted: distribution", |_| {
            on_head(Action::status(405))
        })
        .asks(2, 0, 0, 0),
        again("HEAD 404, GET works", "manifests: HEAD refused", |_| {
            on_head(Action::status(404))
        })
        .asks(2, 0, 0, 0),
        again("HEAD 403 without body", "manifests: HEAD 403", |_| {
            on_head(Action::Answer(403, Vec::new(), Vec::new()))
        })
        .asks(2, 0, 0, 0),
        again("HEAD 500", "manifests: HEAD refused", |_| {
            on_head(Action::status(500))
        })
        .asks(2, 0, 0, 0),
        again("HEAD 200 empty", "manifests: no digest, length 0", |_| {
            on_head(Action::BareHead)
        })
        .asks(2, 0, 0, 0),
        again("HEAD without digest", "public registries: ECR; self-hosted: Harbor", |_| {
            on_head(Action::DigestHeader(None))
        })
        .asks(2, 0, 0, 0),
        again("HEAD without type", "self-hosted: Harbor proxy cache", |_| {
            on_head(Action::ContentType(None))
        })
        .asks(2, 0, 0, 0),
        again("HEAD with another length", "self-hosted: Artifactory", |_| {
            on_head(Action::HeadLength(1638))
        }),
        again("HEAD without length", "self-hosted: Harbor proxy cache", |_| {
            on_head(Action::NoLength)
        })
        .asks(2, 0, 0, 0),
        faulty("no digest header at all", "public registries: ECR, nixery; self-hosted: front proxies", |_| {
            vec![Rule::always(Action::DigestHeader(None))]
        }),
        faulty("wrong digest header on a tag", "manifests: digest header differs", move |_| {
            vec![Rule::on(Kind::Tag, Action::DigestHeader(lie()))]
        })
        .check(|seen, _| seen.warns("the registry says")),
        again("wrong digest header on HEAD only", "manifests: digest header differs", move |_| {
            on_head(Action::DigestHeader(lie()))
        })
        .asks(2, 0, 0, 0),
        row("a digest reference with another body", "manifests: digest reference: refuse", |w| {
            let other = w.hello.read(&w.manifest());
            let rule = Rule::on(Kind::Manifest, Action::body(media::INDEX, other));
            let mut stage = Stage::of(Faulty::start(Arc::clone(&w.hello), [rule]));
            stage.reference = stage
                .reference
                .replace(":latest", &format!("@{}", w.hello.digest("latest")));
            stage
        })
        .fails("invalid_content")
        .asks(0, 1, 0, 0),
        faulty("text/plain", "manifests: types; public registries: redhat", |_| {
            content_type(Some("text/plain"))
        }),
        faulty("application/json with charset", "self-hosted: Artifactory; manifests: types", |_| {
            content_type(Some("application/json; charset=utf-8"))
        }),
        faulty("no content type", "manifests: types", |_| content_type(None)),
        faulty("docker's type on an OCI index", "self-hosted: Harbor: families mixed up", |_| {
            let other = Action::ContentType(Some(media::DOCKER_LIST.to_owned()));
            vec![Rule::on(Kind::Tag, other)]
        }),
        faulty("a manifest's type on an index", "manifests: one kind, the shape of the other", |_| {
            let other = Action::ContentType(Some(media::MANIFEST.to_owned()));
            vec![Rule::on(Kind::Tag, other.clone()), Rule::on(Kind::Manifest, other)]
        })
        .fails("invalid_content")
        .asks(1, 0, 0, 0),
        row("no mediaType in the documents", "public registries: GHCR", |_| {
            served(rewritten(without_media_type))
        }),
        row("escaped slashes, lower-case keys", "public registries: Docker Hub: bodies", |_| {
            served(rewritten(oddly_written))
        }),
        row("docker's manifest list", "basics: six types", |_| served(image::docker_types())),
        row("an index in an index", "platforms", |_| served(image::nested())).asks(1, 2, 4, 0),
        faulty("lists only for who asks for them", "public registries: GHCR: Accept; self-hosted: Harbor (old)", |_| {
            let body = "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"OCI index found, but accept header does not support OCI indexes\"}]}";
            let missing = Action::Answer(404, Vec::new(), body.into());
            vec![
                Rule::on(Kind::Tag, missing.clone()).when(asks_badly),
                Rule::on(Kind::Manifest, missing).when(asks_badly),
            ]
        }),
        row("406 for lists", "status codes: 406: once without list types", |_| {
            let layout = image::hello_single(host());
            let rule = Rule::on(Kind::Tag, Action::status(406)).when(accepts_lists);
            Stage::of(Faulty::start(layout, [rule]))
        })
        .asks_within([2..=4, 0..=1, 4..=4, 0..=0]),
        faulty("406 for everything", "status codes: 406", |_| {
            vec![Rule::on(Kind::Tag, Action::status(406))]
        })
        .fails("invalid_content")
        .asks_within([1..=2, 0..=0, 0..=0, 0..=0]),
        row("schema 1", "public registries: Quay: refuse by name", |_| served(image::schema1()))
            .fails("unsupported")
        .asks(1, 0, 0, 0),
        faulty("a web page with 200", "self-hosted: Harbor; status codes: 200 with HTML", |_| {
            let page = "<!DOCTYPE html><html><head><title>Hotel Wi-Fi</title></head></html>";
            vec![Rule::always(Action::body("text/html; charset=utf-8", page))]
        })
        .fails("unavailable")
        .asks(1, 0, 0, 0)
        .says(&["Hotel Wi-Fi"])
        .heals(),
        faulty("a web page that says it is JSON", "status codes: 200 with HTML", |_| {
            let page = "<html><head><title>Login</title></head></html>";
            vec![Rule::on(Kind::Tag, Action::body("application/json", page))]
        })
        .fails("unavailable")
        .asks(1, 0, 0, 0),
        faulty("gzip although nobody asked", "manifests: gzip; public registries: redhat", |_| {
            vec![Rule::on(Kind::Tag, Action::Gzip)]
        })
        .fails("invalid_content")
        .asks(1, 0, 0, 0)
        .says(&["gzip"]),
        faulty("a manifest that is no JSON", "manifests", |_| {
            let text = Action::body(media::INDEX, "this is not a manifest");
            vec![Rule::on(Kind::Tag, text)]
        })
        .fails("invalid_content")
        .asks(1, 0, 0, 0),
        faulty("an index above 4 MiB, chunked", "manifests: larger than 4 MiB", |_| {
            let index = format!("{{\"schemaVersion\":2,\"x\":\"{}\"}}", "x".repeat(5 << 20));
            let mut raw = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
                media::INDEX,
                index.len()
            );
            raw.push_str(&index);
            raw.push_str("\r\n0\r\n\r\n");
            vec![Rule::on(Kind::Tag, Action::Raw(raw.into_bytes())).method("GET"),
                 Rule::on(Kind::Tag, Action::status(405))]
        })
        .fails("invalid_content")
        .asks(1, 0, 0, 0),
        faulty("no such tag", "status codes: 404", |_| {
            vec![Rule::on(Kind::Tag, Action::status(404))]
        })
        .fails("not_found")
        .asks(1, 0, 0, 0)
        .heals(),
        faulty("a child that is absent", "self-hosted: zot: sparse mirror", |w| {
            vec![Rule::on(Kind::Manifest, Action::status(404)).what(&w.manifest())]
        })
        .fails("not_found")
        .asks(1, 1, 0, 0)
        .check(|seen, w| seen.says(&[&w.manifest()])),
        row("children that were not chosen are absent", "self-hosted: Nexus: attestations", |_| {
            let layout = image::attested();
            let index: Value =
                serde_json::from_slice(&layout.read(&layout.digest("latest"))).unwrap();
            let chosen = layout.manifest("latest", &host());
            let rules: Vec<Rule> = index["manifests"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|entry| entry["digest"].as_str())
                .filter(|digest| *digest != chosen)
                .map(|digest| Rule::on(Kind::Manifest, Action::status(404)).what(digest))
                .collect();
            Stage::of(Faulty::start(layout, rules))
        }),
        faulty("a child with a flipped bit", "manifests", |_| {
            vec![Rule::on(Kind::Manifest, Action::FlipBit(40))]
        })
        .fails("invalid_content")
        .asks(1, 1, 0, 0)
        .heals(),
        faulty("a manifest that is cut once", "blobs: short body", |_| {
            vec![Rule::on(Kind::Manifest, Action::Truncate(100)).times(1)]
        })
        .asks(1, 2, 4, 0),
        faulty("a repository that moved", "manifests: 301 inside the registry", |_| {
            let moved = Action::Location(301, |r| r.path.replace("/lab/app/", "/moved/app/"));
            vec![Rule::always(moved).when(|r| r.path.contains("/lab/app/"))]
        })
        .asks(2, 2, 8, 0),
        faulty("blob HEAD 404 while GET works", "self-hosted: Harbor proxy cache", |_| {
            vec![Rule::on(Kind::Blob, Action::status(404)).method("HEAD")]
        }),
        faulty("/v2/ refused, manifests open", "self-hosted: Nexus: never ping", |_| {
            vec![Rule::on(Kind::Ping, Action::status(401))]
        })
        .check(|seen, _| {
            let pinged = seen.requests.iter().any(|r| r.kind == Kind::Ping);
            holds(!pinged, "it asked /v2/")
        }),
        faulty("a redirect without end", "faults: redirect loop", |_| {
            let itself = Action::Location(307, |r| r.path.clone());
            vec![Rule::on(Kind::Tag, itself)]
        })
        .fails("unavailable")
        .asks(11, 0, 0, 0)
        .says(&["redirects"]),
        faulty("a redirect to nowhere", "status codes: 301", |_| {
            vec![Rule::on(Kind::Tag, Action::status(302)).method("GET"),
                 Rule::on(Kind::Tag, Action::status(405))]
        })
        .fails("unavailable")
        .asks(1, 0, 0, 0),
        row("for no platform of this host", "platforms: no match", |_| served(image::only_s390x()))
            .fails("platform_missing")
        .asks(1, 0, 0, 0)
            .left(Left::Nothing)
            .says(&["linux/s390x"]),
    ]
}
