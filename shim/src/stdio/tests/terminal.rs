//! Processes with a terminal.

use super::*;

fn without_echo(slave: &OwnedFd) {
    let mut settings = tcgetattr(slave).unwrap();
    settings.local_modes -= rustix::termios::LocalModes::ECHO;
    tcsetattr(slave, OptionalActions::Now, &settings).unwrap();
}

#[test]
fn a_terminal_is_copied_both_ways_and_ends_with_its_process() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        without_echo(&slave);
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        io.resize(132, 43).unwrap();
        let size = tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
        // Another one keeps the terminal.
        let kept = slave.try_clone().unwrap();
        let child = start_in(slave, "tty >/dev/null && read line && echo \"<$line>\"");
        io.begin_input();
        client.writer("stdin").write_all(b"hello\n").unwrap();
        assert_eq!(exit(child).await, 0);
        io.ended();
        assert_eq!(read_text(reader).await, "<hello>\r\n");
        assert!(io.drained(LIMIT).await);
        drop(kept);
        io.close().await;
    });
}

#[test]
fn a_terminal_that_nobody_has_for_a_moment_goes_on() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        let child = start_in(
            slave,
            "name=$(tty); echo one; exec <&- >&- 2>&-; sleep 0.3; exec > $name; echo two",
        );
        let (reader, text) = read_until(reader, "two\r\n").await;
        assert_eq!(text, "one\r\ntwo\r\n");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        assert_eq!(read_text(reader).await, "");
        io.close().await;
    });
}

#[test]
fn the_input_of_a_terminal_ends() {
    run(async {
        let client = Client::new(&["stdin", "stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        without_echo(&slave);
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        let child = start_in(slave, "cat");
        io.begin_input();
        client.writer("stdin").write_all(b"no end of line").unwrap();
        io.close_stdin();
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        assert_eq!(read_text(reader).await, "no end of line");
        io.close().await;
    });
}

#[test]
fn a_hundred_megabytes_arrive_through_a_terminal() {
    run(async {
        let client = Client::new(&["stdout"]);
        let reader = client.reader("stdout");
        let (master, slave) = terminal();
        let io = Io::with_console(&client.stdio, &owner(), master)
            .await
            .unwrap();
        let (written, read) = tokio::join!(
            async {
                let written = elsewhere(move || pattern_to(slave.into(), 100_000_000)).await;
                // The tail is not read yet, and nobody has the terminal any more.
                io.ended();
                assert!(io.drained(LIMIT).await);
                written
            },
            elsewhere(move || pattern_from(reader)),
        );
        assert_eq!((written, read), (100_000_000, 100_000_000));
        io.close().await;
    });
}

#[test]
fn a_terminal_without_a_client_does_not_hold_up_its_process() {
    run(async {
        let (master, slave) = terminal();
        let io = Io::with_console(&Stdio::default(), &owner(), master)
            .await
            .unwrap();
        let child = start_in(slave, "head -c 1000000 /dev/zero");
        assert_eq!(exit(child).await, 0);
        assert!(io.drained(LIMIT).await);
        io.close().await;
    });
}
