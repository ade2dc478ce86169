#![allow(clippy::unwrap_used, reason = "tests")]
use std::os::unix::net::UnixListener as StdListener;

use tokio::net::UnixListener;
use tokio::task::LocalSet;

use super::*;

/// Answers `echo` with what it got; `wait` never, and says when its caller has gone.
struct Echo {
    gone: RefCell<Option<oneshot::Sender<()>>>,
}

impl Service for Echo {
    fn call(&self, request: Request, call: Call) -> Answer {
        match request.method.as_str() {
            "echo" => Box::pin(async move { Ok(request.payload) }),
            "fail" => Box::pin(async { Err(Error::precondition("no")) }),
            "big" => Box::pin(async { Ok(vec![0; LONGEST]) }),
            "wait" => {
                let gone = self.gone.take();
                Box::pin(async move {
                    call.abandoned().await;
                    let _ = gone.map(|sender| sender.send(()));
                    Err(Error::new(Code::Aborted, "gone"))
                })
            }
            other => {
                let error = Error::new(Code::Unimplemented, other);
                Box::pin(async move { Err(error) })
            }
        }
    }
}

fn with_server<T>(test: impl AsyncFnOnce(String, oneshot::Receiver<()>) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s").to_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async move {
        let listener = StdListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let (sender, receiver) = oneshot::channel();
        let echo: Rc<dyn Service> = Rc::new(Echo {
            gone: RefCell::new(Some(sender)),
        });
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawn_local(serve(stream, echo.clone()));
            }
        });
        test(path, receiver).await
    })
}

const LIMIT: Duration = Duration::from_secs(20);

fn request(text: &str) -> crate::wire::Any {
    crate::wire::Any {
        type_url: text.to_owned(),
        value: Vec::new(),
    }
}

#[test]
fn calls_are_answered_each_with_its_own() {
    with_server(async |path, _| {
        let client = Rc::new(Client::connect(&path).await.unwrap());
        let mut tasks = Vec::new();
        for n in 0..50 {
            let client = client.clone();
            tasks.push(spawn_local(async move {
                let message = request(&n.to_string());
                let answer = client.call("s", "echo", &message, LIMIT).await.unwrap();
                assert_eq!(answer, message.encode_to_vec());
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let error = client.call("s", "fail", &request(""), LIMIT).await;
        assert_eq!(error.unwrap_err().message(), "no");
        let error = client.call("s", "big", &request(""), LIMIT).await;
        assert!(error.unwrap_err().message().contains("4 MiB"));
        let error = client.call("s", "none", &request(""), LIMIT).await;
        assert_eq!(error.unwrap_err().message(), "none");
        let again = client.call("s", "echo", &request("x"), LIMIT).await;
        assert!(again.is_ok());
    });
}

#[test]
fn who_waits_is_told_when_the_caller_has_gone() {
    with_server(async |path, gone| {
        let client = Client::connect(&path).await.unwrap();
        let short = Duration::from_millis(20);
        // The caller's own limit, then its end.
        let error = client.call("s", "wait", &request(""), short).await;
        assert_eq!(error.unwrap_err().code(), Code::DeadlineExceeded);
        drop(client);
        tokio::time::timeout(LIMIT, gone).await.unwrap().unwrap();
    });
}

#[test]
fn what_breaks_the_protocol_is_answered_and_passed_over() {
    with_server(async |path, _| {
        let stream = UnixStream::connect(&path).await.unwrap();
        let good = Request {
            method: "echo".to_owned(),
            payload: b"x".to_vec(),
            ..Request::default()
        };
        let mut bytes = Vec::new();
        // Longer than allowed, an even stream, no request at all, an unknown type, a good one, the same again.
        let long = u32::try_from(LONGEST + 1).unwrap();
        bytes.extend(long.to_be_bytes());
        bytes.extend(1_u32.to_be_bytes());
        bytes.extend([REQUEST, 0]);
        bytes.extend(vec![7; LONGEST + 1]);
        bytes.extend(frame(2, REQUEST, &good).unwrap());
        bytes.extend([0, 0, 0, 2, 0, 0, 0, 3, REQUEST, 0, 0xff, 0xff]);
        bytes.extend(frame(5, 9, &good).unwrap());
        bytes.extend(frame(7, REQUEST, &good).unwrap());
        bytes.extend(frame(7, REQUEST, &good).unwrap());
        let (mut reader, mut writer) = stream.into_split();
        spawn_local(async move {
            writer.write_all(&bytes).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut answers = Vec::new();
        for _ in 0..5 {
            let frame = read_frame(&mut reader).await.unwrap();
            let response = Response::decode(frame.payload.unwrap().as_slice()).unwrap();
            answers.push((frame.stream, response.status.map(|status| status.code)));
        }
        answers.sort_unstable();
        assert_eq!(
            answers,
            [
                (1, Some(8)),
                (2, Some(3)),
                (3, Some(3)),
                (7, None),
                (7, Some(3))
            ]
        );
    });
}
