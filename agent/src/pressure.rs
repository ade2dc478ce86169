//! Whether this host has memory and disk to spare, as the kernel tells it: pressure stall
//! information, the part of the time in which work waits for them.
//!
//! A fetch is not begun under pressure. One that runs goes on: on a small card it makes most
//! of the pressure itself.

use std::{
    fmt, fs,
    io::{ErrorKind, Read},
    path::Path,
    time::Duration,
};

/// Memory, all waiting: a tenth of the time is lost to reclaim and swap. A host that works
/// as it should is near 0, and beyond a tenth the kernel's or systemd's killer is not far.
const MEMORY: Share = Share(10_00);
/// Disk, all waiting. A slow card is there for seconds when anything is written; two fifths
/// of the last ten seconds mean that those who serve users wait.
const IO: Share = Share(40_00);
/// Pressure that does not end for so long is how this host is, and its images have to come
/// nevertheless.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The files have two lines; more is none of them.
const LARGEST: u64 = 4096;

/// Hundredths of a percent of the last ten seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0 / 100)
    }
}

/// How much of the time some, and all, of the work waited for one thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stall {
    pub some: Share,
    pub full: Share,
}

/// What the kernel tells; `None` where it does not: a kernel without it (or with it switched
/// off), or files that are hidden from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: Option<Stall>,
    pub io: Option<Stall>,
}

impl Stall {
    /// Reads the text of one of the kernel's files.
    pub fn parse(text: &str) -> Option<Self> {
        let line = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .and_then(|rest| {
                    rest.split_whitespace()
                        .find_map(|word| word.strip_prefix("avg10="))
                })
                .and_then(share)
        };
        Some(Self {
            some: line("some")?,
            full: line("full")?,
        })
    }
}

/// The kernel writes two digits after the point.
fn share(text: &str) -> Option<Share> {
    let (whole, fraction) = text.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if fraction.len() != 2 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: u32 = whole.parse().ok().filter(|whole| *whole <= 100)?;
    let fraction: u32 = fraction.parse().ok()?;
    Some(Share(whole * 100 + fraction))
}

impl Pressure {
    /// Reads what the kernel tells now; `root` is `/`, or a recorded host's directory.
    pub fn read(root: &Path) -> Self {
        let stall = |name: &str| {
            let text = text(&root.join("proc/pressure").join(name))?;
            Stall::parse(&text)
        };
        Self {
            memory: stall("memory"),
            io: stall("io"),
        }
    }

    /// Why a fetch should wait, if it should.
    pub fn reason(&self) -> Option<String> {
        let over = |what: &str, stall: Option<Stall>, most: Share| {
            let full = stall?.full;
            (full >= most).then(|| {
                format!("all work waited for {what} {full} of the last 10 s (at most {most})")
            })
        };
        over("memory", self.memory, MEMORY).or_else(|| over("disks", self.io, IO))
    }
}

fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_string(&mut text));
    match read {
        Ok(_) => Some(text),
        Err(error) => {
            // Asked for again and again: what is not there is no news.
            if error.kind() != ErrorKind::NotFound {
                tracing::trace!(path = %path.display(), %error, "the kernel does not tell its pressure");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=48937\n\
                        full avg10=0.00 avg60=0.00 avg300=0.00 total=42\n";

    fn file(some: &str, full: &str) -> String {
        format!(
            "some avg10={some} avg60=1.00 avg300=1.00 total=1\nfull avg10={full} avg60=99.00 avg300=99.00 total=1\n"
        )
    }

    #[test]
    fn the_kernels_text_is_read_and_nothing_else() {
        assert_eq!(Stall::parse(CALM), Some(Stall::default()));
        assert_eq!(
            Stall::parse(&file("12.34", "5.06")),
            Some(Stall {
                some: Share(1234),
                full: Share(506)
            })
        );
        for bad in [
            "",
            "some avg10=1.00\n",
            "some avg10=1.00\nfull avg60=1.00\n",
            "some avg10=1\nfull avg10=1\n",
            "some avg10=-1.00\nfull avg10=1.00\n",
            "some avg10=1.00\nfull avg10=101.00\n",
            "some avg10=1.00\nfully avg10=1.00\n",
        ] {
            assert_eq!(Stall::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_fetch_waits_where_all_work_waits() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = dir.path().join("proc/pressure");
        let pressure = |memory: &str, io: &str| {
            fs::create_dir_all(&files).expect("a folder");
            for (name, full) in [("memory", memory), ("io", io)] {
                fs::write(files.join(name), file("99.00", full)).expect("a file");
            }
            Pressure::read(dir.path()).reason()
        };
        assert_eq!(pressure("9.99", "39.99"), None, "`some` is nothing unusual");
        let memory = pressure("10.00", "50.00").expect("too much");
        assert!(memory.contains("memory 10 %"), "{memory}");
        let io = pressure("0.00", "40.00").expect("too much");
        assert!(io.contains("disks 40 %"), "{io}");
        fs::remove_dir_all(&files).expect("ours");
        let nothing = Pressure::read(dir.path());
        assert_eq!(nothing, Pressure::default());
        assert_eq!(nothing.reason(), None, "a kernel without it");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}", number in "[0-9.]{0,12}") {
            let _ = Stall::parse(&text);
            let _ = Stall::parse(&file(&number, &number));
        }

        #[test]
        fn what_the_kernel_writes_is_read(whole in 0_u32..100, part in 0_u32..100) {
            let text = format!("{whole}.{part:02}");
            prop_assert_eq!(share(&text), Some(Share(whole * 100 + part)));
        }
    }
}
