#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

#[test]
fn the_last_error_since_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.json");
    let old = "{\"level\":\"error\",\"msg\":\"old\",\"time\":\"t\"}\n";
    std::fs::write(&path, old).unwrap();
    let after = old.len() as u64;
    assert_eq!(last_error(&path, after), None);
    assert_eq!(last_error(&path, 0).as_deref(), Some("old"));
    let new = format!(
        "{old}{{\"level\":\"error\",\"msg\":\"one\"}}\n{{\"level\":\"warning\",\"msg\":\"w\"}}\n{{\"level\":\"error\",\"msg\":\"two\"}}\nnot json"
    );
    std::fs::write(&path, new).unwrap();
    assert_eq!(last_error(&path, after).as_deref(), Some("two"));
    assert_eq!(last_error(&dir.path().join("none"), 0), None);
}

#[test]
fn a_runtime_runs_in_the_bundle_and_one_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    let options = |name: &str| Options {
        binary_name: name.to_owned(),
        ..Options::default()
    };
    let program = dir.path().join("runtime");
    std::fs::write(&program, "#!/bin/sh\npwd\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let runtime = Runtime::new(&options(program.to_str().unwrap()), "n", &bundle);
    let pwd = async || {
        let out = runtime.plain("state", "x", None).await.unwrap().unwrap();
        PathBuf::from(String::from_utf8(out).unwrap().trim_end())
    };
    child::testing::run(async {
        assert_eq!(pwd().await, bundle);
        // Cleaning up goes on when the bundle is gone.
        std::fs::remove_dir(&bundle).unwrap();
        assert_eq!(pwd().await, Path::new("/"));
        let missing = Runtime::new(&options("no-such-runtime"), "n", &bundle);
        let error = missing.plain("state", "x", None).await.unwrap_err();
        assert!(error.message().contains("\"no-such-runtime\""), "{error}");
    });
}

#[test]
fn failures_are_told_in_the_codes_that_clients_know() {
    let failure = |said: &str| Failure {
        said: Some(said.to_owned()),
        ended: "`runc kill` ended with status 1".to_owned(),
    };
    for gone in [
        "container not running",
        "unable to signal init: os: process already finished",
        "No such process",
    ] {
        assert_eq!(failure(gone).of_kill().code(), Code::NotFound, "{gone}");
    }
    assert_eq!(
        failure("operation not permitted").of_kill().code(),
        Code::Unknown
    );
    let error = failure("exec: \"x\": not\nfound").error("OCI runtime create failed");
    assert_eq!(
        error.message(),
        "OCI runtime create failed: exec: \"x\": not found"
    );
    let old = failure("unknown version specified").error("OCI runtime create failed");
    assert!(old.message().contains("crun 1.21"));
    let silent = Failure {
        said: None,
        ended: "`x` ended with status 2".to_owned(),
    };
    assert!(
        silent
            .error("OCI runtime start failed")
            .message()
            .ends_with("ended with status 2")
    );
}
