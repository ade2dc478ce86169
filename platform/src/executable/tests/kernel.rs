//! The kernel of the machine that runs the tests, asked about the same files: what it starts is not
//! refused, what it does not start is not called native.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// `exit(42)`.
const EXIT: &[u8] = &[
    0xb8, 60, 0, 0, 0, // mov $60, %eax
    0xbf, 42, 0, 0, 0, // mov $42, %edi
    0x0f, 0x05, // syscall
];

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It did what it was made to do.
    Ran,
    /// `execve` failed.
    NotStarted,
    /// It did something else, as a program with a changed header may.
    Crashed,
}

fn write(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).expect("a writable directory");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the mode");
}

fn run(path: &Path) -> Outcome {
    let begun = Instant::now();
    let mut child = loop {
        let child = Command::new(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => break child,
            // Another test has forked while the file was being written.
            Err(error)
                if error.kind() == ErrorKind::ExecutableFileBusy
                    && begun.elapsed() < Duration::from_secs(10) =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return Outcome::NotStarted,
        }
    };
    let begun = Instant::now();
    loop {
        match child.try_wait().expect("a child") {
            Some(status) if status.code() == Some(42) => return Outcome::Ran,
            Some(_) => return Outcome::Crashed,
            None if begun.elapsed() > Duration::from_secs(2) => {
                child.kill().expect("our own child");
                child.wait().expect("a child");
                return Outcome::Crashed;
            }
            None => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

fn program() -> Vec<u8> {
    let mut file = Program::amd64().write();
    file[0x100..0x100 + EXIT.len()].copy_from_slice(EXIT);
    file
}

fn judged(path: &Path, host: &Host) -> Verdict {
    let open = |path: &Path| fs::File::open(path).map(|file| Needs::read(&file));
    judge_with(&open(path).expect("there"), host, &mut |path| {
        let path = String::from_utf8_lossy(path).into_owned();
        match open(Path::new(&path)) {
            Ok(needs) => Found::File(Box::new(needs)),
            Err(_) => Found::Missing,
        }
    })
    .verdict
}

/// A verdict that the kernel contradicts.
fn contradiction(path: &Path, host: &Host) -> Option<String> {
    let verdict = judged(path, host);
    let outcome = run(path);
    let wrong = match outcome {
        Outcome::Ran => matches!(verdict, Verdict::Refused { .. }),
        Outcome::NotStarted => verdict.runs(),
        Outcome::Crashed => false,
    };
    wrong.then(|| format!("{outcome:?}, but {verdict}"))
}

fn here() -> Host {
    detect(&Facts::live().expect("facts")).expect("a host")
}

/// Every byte of the ELF header and of the program headers, changed in several ways.
#[test]
fn headers_with_one_byte_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("program");
    let host = here();
    let file = program();
    write(&path, &file);
    assert_eq!(
        run(&path),
        Outcome::Ran,
        "programs must run in {}",
        dir.path().display()
    );
    assert!(judged(&path, &host).runs());
    for at in 0..64 + 2 * 56 {
        for value in [0, 1, 3, 0x40, 0xff, file[at] ^ 1, file[at] ^ 0x10] {
            let mut changed = file.clone();
            changed[at] = value;
            write(&path, &changed);
            let wrong = contradiction(&path, &host);
            assert_eq!(wrong, None, "byte {at} is {value:#x}");
        }
    }
    for length in (0..file.len()).step_by(7) {
        write(&path, &file[..length]);
        assert_eq!(contradiction(&path, &host), None, "cut off at {length}");
    }
}

#[test]
fn first_lines_of_scripts() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = dir.path().join("p");
    write(&own, &program());
    let own = own.to_str().expect("a plain path");
    let path = dir.path().join("script");
    let host = here();
    let fill = |length: usize, byte: &str| byte.repeat(length);
    // With the `#!` and this many blanks, the path ends at the 256th byte.
    let longest = 254 - own.len();
    let mut started = 0;
    for text in [
        format!("#!{own}"),
        format!("#!{own}\n"),
        format!("#! \t{own} \t \n"),
        format!("#!{own} -a -b\n"),
        format!("#!{own}\0\n"),
        format!("#!{own}\0 x\n"),
        format!("#!{own}\r\n"),
        format!("#!{own} \r\n"),
        format!("#!{own} a\r\n"),
        format!("#! {own}\t{}\n", fill(400, "x")),
        format!("#!{}{own}\n", fill(longest - 2, " ")),
        format!("#!{}{own}\n", fill(longest - 1, " ")),
        format!("#!{}{own}\n", fill(longest, " ")),
        format!("#!{}{own} \n", fill(longest - 1, " ")),
        format!("#!{}{own}", fill(longest - 1, " ")),
        format!("#!{}{own}", fill(longest, " ")),
        format!("#!{}", fill(300, " ")),
        format!("#!{}\n", fill(20, " ")),
        "#!".to_owned(),
        "#!\n".to_owned(),
        "#!\0\n".to_owned(),
        "#!/no/such/program\n".to_owned(),
        format!(" #!{own}\n"),
        format!("\u{feff}#!{own}\n"),
        "exit 42\n".to_owned(),
        String::new(),
        fill(300, "\0"),
    ] {
        write(&path, text.as_bytes());
        assert_eq!(contradiction(&path, &host), None, "{text:?}");
        started += usize::from(run(&path) == Outcome::Ran);
    }
    assert!(started >= 10, "only {started} ran");
}

#[test]
fn scripts_for_scripts() {
    let dir = tempfile::tempdir().expect("a directory");
    let host = here();
    let own = dir.path().join("s0");
    write(&own, &program());
    let mut outcomes = Vec::new();
    for depth in 1..=7 {
        let path = dir.path().join(format!("s{depth}"));
        let below = dir.path().join(format!("s{}", depth - 1));
        write(&path, format!("#!{}\n", below.display()).as_bytes());
        let verdict = judged(&path, &host);
        let outcome = run(&path);
        assert_eq!(
            verdict.runs(),
            outcome == Outcome::Ran,
            "{depth}: {outcome:?}, {verdict}"
        );
        outcomes.push(verdict.runs());
    }
    assert_eq!(outcomes, [true, true, true, true, true, false, false]);
}
