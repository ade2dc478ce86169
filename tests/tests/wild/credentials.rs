//! Whose credentials are presented: flags, files, variables, helpers.

use std::sync::Arc;

use edgepull_tests::faulty::{Auth, Faulty};
use edgepull_tests::http::base64;

use super::row::{PASSWORD, Row, Stage, USER, World, holds, row};

/// Docker's config.json with an entry for the registry.
pub(super) fn auths(host: &str, entry: &str) -> String {
    format!("{{\"auths\":{{\"{host}\":{{{entry}}}}}}}")
}

pub(super) fn basic_entry() -> String {
    format!(
        "\"auth\":\"{}\"",
        base64(format!("{USER}:{PASSWORD}").as_bytes())
    )
}

pub(super) fn basic_registry(w: &World) -> Faulty {
    let auth = Auth::Basic(USER.to_owned(), PASSWORD.to_owned());
    Faulty::start_with(Arc::clone(&w.hello), auth, [])
}

pub(crate) fn rows() -> Vec<Row> {
    vec![
        row("Basic with --creds", "self-hosted: Nexus", |w| {
            Stage::of(basic_registry(w)).creds()
        })
        .asks(2, 1, 4, 0),
        row("Basic from $DOCKER_CONFIG", "basics", |w| {
            let server = basic_registry(w);
            let file = auths(server.host(), &basic_entry());
            Stage::of(server).file("config.json", file)
        })
        .asks(2, 1, 4, 0),
        row("Basic from $DOCKER_AUTH_CONFIG", "basics", |w| {
            let server = basic_registry(w);
            let text = auths(server.host(), &basic_entry());
            Stage::of(server).env("DOCKER_AUTH_CONFIG", text)
        })
        .asks(2, 1, 4, 0),
        row(
            "Basic from a credential helper",
            "public registries: ECR: helpers",
            |w| {
                let server = basic_registry(w);
                let file = format!("{{\"credHelpers\":{{\"{}\":\"lab\"}}}}", server.host());
                let helper = format!(
                    "#!/bin/sh\n[ \"$1\" = get ] || exit 1\ncat >/dev/null\n\
                 echo '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
                );
                Stage::of(server)
                    .file("config.json", file)
                    .file("docker-credential-lab", helper)
            },
        )
        .asks(2, 1, 4, 0),
        row(
            "a credential helper that fails",
            "public registries: ECR: helpers",
            |w| {
                let server = basic_registry(w);
                let file = format!(
                    "{{\"credsStore\":\"lab\",\"auths\":{{\"{}\":{{}}}}}}",
                    server.host()
                );
                let helper = format!("#!/bin/sh\necho '{PASSWORD} is locked' >&2\nexit 1\n");
                Stage::of(server)
                    .file("config.json", file)
                    .file("docker-credential-lab", helper)
            },
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 0),
        row(
            "a credential helper that hangs",
            "public registries: ECR: helpers",
            |w| {
                let server = basic_registry(w);
                let file = format!("{{\"credHelpers\":{{\"{}\":\"lab\"}}}}", server.host());
                Stage::of(server)
                    .file("config.json", file)
                    .file("docker-credential-lab", "#!/bin/sh\nexec sleep 600\n")
            },
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 0)
        .check(|seen, _| {
            let causes = seen.error["causes"].to_string();
            let told = [
                "docker-credential-lab (",
                "/config.json) gave no login: no answer in 20 s",
            ];
            holds(
                told.iter().all(|part| causes.contains(part)),
                &format!("the error does not say why: {causes}"),
            )
        })
        .slow(),
        row(
            "credentials of another registry",
            "mirrors: credentials by origin",
            |w| {
                let server = basic_registry(w);
                let file = auths("registry.example", &basic_entry());
                Stage::of(server).file("config.json", file)
            },
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 0),
    ]
}
