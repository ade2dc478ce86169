//! Output that a program takes.

use super::*;

/// Waits for the end of its input, and keeps all that it was given.
const KEEPS: &str = "cd \"${0%/*}\"; echo \"$@\" >args; env >env; readlink /proc/$$/fd/* >fds
    echo >&5; cat <&3 >out & cat <&4 >err & exec 3<&- 4<&-; wait";

#[test]
fn a_logger_has_both_streams() {
    run(async {
        let client = Client::new(&[]);
        let uri = client.logger("binary", KEEPS, "?id=a%20b&id=c&flag");
        let stdio = Stdio {
            stdout: uri.clone(),
            stderr: uri,
            ..Stdio::default()
        };
        let (ends, io) = Io::open(&stdio, &owner()).await.unwrap();
        let child = start("echo out; echo err >&2", ends);
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
        let kept = |name| fs::read_to_string(client.path(name)).unwrap();
        assert_eq!(
            (kept("out").as_str(), kept("err").as_str()),
            ("out\n", "err\n")
        );
        assert_eq!(kept("args"), "id a b flag \n");
        let environment = kept("env");
        assert!(environment.contains("CONTAINER_ID=box\n"), "{environment}");
        assert!(
            environment.contains("CONTAINER_NAMESPACE=space\n"),
            "{environment}"
        );
        assert!(!environment.contains("CARGO"), "{environment}");
        // Each pipe once, and no end of one that is not the logger's.
        let mut pipes: Vec<String> = kept("fds").lines().map(String::from).collect();
        pipes.retain(|target| target.starts_with("pipe:"));
        let count = pipes.len();
        pipes.sort_unstable();
        pipes.dedup();
        assert!(count >= 3 && pipes.len() == count, "{}", kept("fds"));
    });
}

#[test]
fn each_stream_may_have_its_own() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let stdio = Stdio {
            stderr: client.logger("binary", KEEPS, ""),
            ..client.stdio.clone()
        };
        let (ends, io) = Io::open(&stdio, &owner()).await.unwrap();
        let child = start("echo out; echo err >&2", ends);
        assert_eq!(exit(child).await, 0);
        assert_eq!(read_text(reader).await, "out\n");
        io.close().await;
        assert_eq!(fs::read_to_string(client.path("out")).unwrap(), "");
        assert_eq!(fs::read_to_string(client.path("err")).unwrap(), "err\n");
    });
}

#[test]
fn a_logger_has_the_output_of_a_terminal() {
    run(async {
        let client = Client::new(&[]);
        let stdio = Stdio {
            stdout: client.logger("binary", KEEPS, ""),
            ..Stdio::default()
        };
        let (master, slave) = terminal();
        let io = Io::with_console(&stdio, &owner(), master).await.unwrap();
        let child = start_in(slave, "echo hello");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
        assert_eq!(fs::read_to_string(client.path("out")).unwrap(), "hello\r\n");
    });
}

#[test]
fn a_logger_that_is_gone_does_not_stop_a_terminal() {
    run(async {
        let client = Client::new(&[]);
        let stdio = Stdio {
            stdout: client.logger("binary", "exit 0", ""),
            ..Stdio::default()
        };
        let (master, slave) = terminal();
        let io = Io::with_console(&stdio, &owner(), master).await.unwrap();
        let child = start_in(slave, "head -c 1000000 /dev/zero");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}

#[test]
fn a_logger_has_to_be_ready() {
    run(async {
        let client = Client::new(&[]);
        let open = async |scheme, script| {
            let stdio = Stdio {
                stdout: client.logger(scheme, script, ""),
                ..Stdio::default()
            };
            match Io::open(&stdio, &owner()).await {
                Ok((_, io)) => {
                    io.close().await;
                    None
                }
                Err(error) => Some(error.to_string()),
            }
        };
        assert_eq!(open("binary", "exit 3").await, None);
        assert_eq!(open("binary", "exec 5>&-; cat <&3").await, None);
        assert_eq!(open("binary-v2", "echo >&5; cat <&3").await, None);
        let error = open("binary-v2", "exit 3").await.unwrap();
        assert!(error.contains("without saying that it is ready"), "{error}");
        assert!(error.contains("logger of box"), "{error}");
    });
}

#[test]
fn a_logger_that_is_not_there_is_named() {
    run(async {
        let stdio = Stdio {
            stdout: "binary:///no/such/logger".into(),
            ..Stdio::default()
        };
        let error = Io::open(&stdio, &owner()).await.unwrap_err();
        assert!(error.message().contains("/no/such/logger"), "{error}");
        assert!(error.message().contains("No such file"), "{error}");
    });
}

/// The logger, the writing end of its stdout, and its pid.
async fn start_logger(client: &Client, script: &str) -> (crate::error::Result<Logger>, OwnedFd) {
    client.logger("binary", script, "");
    let command = LoggerCommand {
        path: client.path("logger"),
        arguments: Vec::new(),
        strict: false,
    };
    let ((stdout, write), (stderr, _)) =
        (open::pipe(&owner()).unwrap(), open::pipe(&owner()).unwrap());
    let logger = Logger::start(&command, &owner(), [stdout, stderr], MOMENT * 10).await;
    (logger, write)
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn a_logger_that_says_nothing_is_given_up_and_ended() {
    run(async {
        let client = Client::new(&[]);
        let script = "echo $$ > \"$0.pid\"; exec sleep 600";
        let (logger, _write) = start_logger(&client, script).await;
        let error = logger.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(error.message().contains("descriptor 5"), "{error}");
        let pid = fs::read_to_string(client.path("logger.pid")).unwrap();
        soon("its end", || is_gone(&pid)).await;
    });
}

#[test]
fn a_logger_is_asked_to_end_and_then_killed() {
    run(async {
        let client = Client::new(&[]);
        let tidy = "trap 'echo tidy > \"$0.out\"; exit' TERM; exec 5>&-
            while :; do sleep 0.05; done";
        let (logger, _write) = start_logger(&client, tidy).await;
        logger.unwrap().close(Instant::now() + LIMIT).await;
        assert_eq!(
            fs::read_to_string(client.path("logger.out")).unwrap(),
            "tidy\n"
        );

        let deaf = "trap '' TERM; echo $$ > \"$0.pid\"; exec 5>&-
            while :; do sleep 0.05; done";
        let (logger, _write) = start_logger(&client, deaf).await;
        logger.unwrap().close(Instant::now() + MOMENT).await;
        let pid = fs::read_to_string(client.path("logger.pid")).unwrap();
        assert!(is_gone(&pid));
    });
}
