//! What people are told: one line that names the file in the image, what it needs, what this host
//! has, and the next step.

use edgepull_platform::{
    Host, How,
    executable::{Kind, Refusal as Why},
    launch::{Looked, Seen},
    starts,
};

/// A line passes through containerd, CRI and kubelet, which put their own words before it.
const LONGEST: usize = 960;
/// A path or a reason of more bytes is cut in the middle of nowhere.
const LONGEST_PART: usize = 320;

/// Why a container is not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    reason: &'static str,
    line: String,
    about: About,
}

/// A container that an emulator will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulated {
    line: String,
    about: About,
}

/// The file that decided, on which host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct About {
    /// In the container.
    pub(super) file: String,
    /// What it is.
    pub(super) needs: String,
    /// The host's platform.
    pub(super) host: String,
}

impl Refusal {
    pub(super) fn new(
        looked: &Looked,
        via: Option<&str>,
        why: Why,
        reason: &str,
        host: &Host,
        image: Option<&str>,
    ) -> Refusal {
        let image = name(image);
        let decisive = subject(looked, via);
        let line = match why {
            Why::Machine | Why::System => format!(
                "{decisive} is {}; this host ({}) runs {}; use an image that has {} (`edgepull check {image}` tells){}",
                needs(looked),
                platform(host),
                runs(host, why),
                platform(host),
                if why == Why::Machine {
                    ", or register an emulator"
                } else {
                    ""
                },
            ),
            Why::Empty => {
                let zeros = looked
                    .file()
                    .is_some_and(|file| file.needs.kind == Kind::Zeros);
                let what = if zeros {
                    "consists of zeros"
                } else {
                    "is empty"
                };
                format!(
                    "{decisive} {what}, probably from a power cut; {}",
                    mend(&image)
                )
            }
            _ => format!(
                "{} is {}, and {}; this host is {}; {}",
                first(looked, via),
                cut(&looked
                    .files
                    .first()
                    .map_or_else(String::new, |file| file.needs.describe())),
                cut(reason),
                described(host, why),
                next(looked, why, host, &image),
            ),
        };
        Refusal {
            reason: why.name(),
            line: told(&line),
            about: About::new(looked, host),
        }
    }

    /// An emulator would run it, and must not.
    pub(super) fn emulation(
        looked: &Looked,
        via: Option<&str>,
        handler: &str,
        host: &Host,
        image: Option<&str>,
    ) -> Refusal {
        let line = format!(
            "{} is {}; this host ({}) would run it by the emulator `{}` alone, which `[shim] emulation` of /etc/edgepull/config.toml or the annotation io.edgepull.emulation forbids; use an image that has {} (`edgepull check {}` tells)",
            subject(looked, via),
            needs(looked),
            platform(host),
            cut(handler),
            platform(host),
            name(image),
        );
        Refusal {
            reason: starts::EMULATION,
            line: told(&line),
            about: About::new(looked, host),
        }
    }

    /// What people are told.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The reason in one word of [`starts::reasons`], as the metric's label has it.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The file of the container that decided.
    pub fn file(&self) -> &str {
        &self.about.file
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }
}

impl Emulated {
    pub(super) fn new(
        looked: &Looked,
        via: Option<&str>,
        handler: &str,
        host: &Host,
        image: Option<&str>,
    ) -> Emulated {
        let line = format!(
            "{} is {}; this host ({}) runs it by the emulator `{}`, many times slower than a program of its own; use an image that has {} (`edgepull check {}` tells), or forbid it by `[shim] emulation = \"never\"` in /etc/edgepull/config.toml",
            subject(looked, via),
            needs(looked),
            platform(host),
            cut(handler),
            platform(host),
            name(image),
        );
        Emulated {
            line: bounded(&line),
            about: About::new(looked, host),
        }
    }

    /// What people are told.
    pub fn line(&self) -> &str {
        &self.line
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }
}

impl About {
    fn new(looked: &Looked, host: &Host) -> About {
        About {
            file: looked
                .file()
                .map_or_else(String::new, |file| cut(&file.path)),
            needs: needs(looked),
            host: platform(host),
        }
    }
}

/// The file that decided, and why it is needed if it is not the one that was asked for.
fn subject(looked: &Looked, via: Option<&str>) -> String {
    let file = looked.file().map_or("", |file| file.path.as_str());
    let asked = looked.files.first().map_or("", |file| file.path.as_str());
    match (asked == file, via) {
        (true, None) => format!("{} of the container", cut(file)),
        (true, Some(init)) => format!(
            "{} of the container, which {} starts,",
            cut(file),
            cut(init)
        ),
        (false, _) => format!(
            "{} of the container, which {} needs,",
            cut(file),
            cut(asked)
        ),
    }
}

/// The file that was asked for.
fn first(looked: &Looked, via: Option<&str>) -> String {
    let asked = looked.files.first().map_or("", |file| file.path.as_str());
    match via {
        None => format!("{} of the container", cut(asked)),
        Some(init) => format!(
            "{} of the container, which {} starts,",
            cut(asked),
            cut(init)
        ),
    }
}

fn needs(looked: &Looked) -> String {
    let file = looked.file().map(|file| file.needs.describe());
    cut(&file.unwrap_or_default())
}

/// The image's name for a command line, or a word in its place.
fn name(image: Option<&str>) -> String {
    cut(image.unwrap_or("IMAGE"))
}

/// The platform that images for this host are labelled with; levels of an architecture are seldom.
fn platform(host: &Host) -> String {
    if host.architecture == "arm" {
        return host.platform.to_string();
    }
    format!("{}/{}", host.os, host.architecture)
}

/// `amd64 and 386`, and what emulators run.
fn runs(host: &Host, why: Why) -> String {
    let mut names: Vec<String> = Vec::new();
    for runs in host.runs_natively() {
        let platform = &runs.platform;
        let known = names
            .iter()
            .any(|name| name.split('/').next() == Some(platform.architecture()));
        if !known {
            // Of 32-bit Arm the best variant says what else runs.
            names.push(match (platform.architecture(), host.kernel.as_str()) {
                ("arm", "arm") => format!("arm/{}", platform.variant()),
                (architecture, _) => architecture.to_owned(),
            });
        }
    }
    let names = names.join(" and ");
    let emulated = host.runs.iter().any(|runs| runs.how == How::Emulated);
    match (why, emulated) {
        (Why::System, _) => format!("Linux programs for {names}"),
        (_, true) => format!("{names}, and has no emulator for this"),
        (_, false) => names,
    }
}

/// What of this host the file does not fit.
fn described(host: &Host, why: Why) -> String {
    let platform = platform(host);
    match (why, host.page_size) {
        (Why::Pages, Some(size)) => format!("{platform} with pages of {} KiB", size / 1024),
        _ => platform,
    }
}

fn mend(image: &str) -> String {
    format!(
        "`edgepull repair {image}` compares the image's files with its layers and brings them back; if they never were sound, the publisher has to build it again"
    )
}

fn next(looked: &Looked, why: Why, host: &Host, image: &str) -> String {
    let lost = |file: &Seen| matches!(file.needs.kind, Kind::Empty | Kind::Zeros);
    match why {
        Why::Damaged => mend(image),
        Why::Interpreter if looked.files.iter().any(lost) => mend(image),
        Why::Interpreter => {
            "tell the publisher: what the program needs is not in the image, or is for another C library"
                .to_owned()
        }
        Why::Pages if host.kernel == "arm64" => {
            "boot a kernel with 4K pages (on a Raspberry Pi 5 `kernel=kernel8.img` in config.txt), or have the image built with segments aligned to 64K (`-z max-page-size=65536`)"
                .to_owned()
        }
        Why::Pages => "have the image built with segments aligned to 64K (`-z max-page-size=65536`)".to_owned(),
        Why::Level => {
            "use an image that is built for this CPU's level: an older tag, or another base".to_owned()
        }
        Why::Mode => format!(
            "use the 64-bit image of it, if there is one (`edgepull inspect {image}` shows what is offered)"
        ),
        _ => format!(
            "tell the publisher; `edgepull verify {image}` shows each file on the way from the entrypoint"
        ),
    }
}

fn told(line: &str) -> String {
    bounded(&format!("cannot run here: {line}"))
}

/// One line, of a length that everybody passes on.
fn bounded(line: &str) -> String {
    shortened(line, LONGEST)
}

fn cut(part: &str) -> String {
    shortened(part, LONGEST_PART)
}

fn shortened(text: &str, most: usize) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if plain.len() <= most {
        return plain;
    }
    // Room for the sign that something is missing.
    let end = most.saturating_sub('…'.len_utf8());
    let end = (0..=end).rev().find(|at| plain.is_char_boundary(*at));
    format!("{}…", plain.get(..end.unwrap_or(0)).unwrap_or_default())
}
