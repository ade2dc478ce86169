//! `edgepull-image-verifier`: containerd's image-verifier protocol (bindir), so that pulls by
//! others obey the same platform truth.
//!
//! containerd's transfer service calls it after a reference was resolved and before anything is
//! fetched, with `-name`, `-digest` and `-stdin-media-type`, and the descriptor on standard input.
//! Exit code 0 lets the pull go on, any other refuses it; what stands on standard output is the
//! reason. It must never block a node by its own fault: whatever it does not know, understand or
//! find in time lets the pull go on.

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    path::Path,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use serde::Deserialize;

use crate::{
    asked::Asked,
    config::Config,
    containerd::StoreSource,
    desired::Verify,
    error::{Error, Result},
    event::Events,
    kind::Kind,
    oci::{Digest, Document, DocumentKind, Reference},
    pull::{
        Look, Puller,
        image::{self, advised, stored},
    },
    registry::Client,
    resolve::{Entry, Picked, Resolution, Want, resolve},
    session::{Attached, Flags, Session},
    source::Nearest,
};
use edgepull_platform::OfferKind;

const NAME: &str = "edgepull-image-verifier";
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";
/// containerd gives ten seconds, and takes a verifier that uses them up for a failed one.
const DEADLINE: Duration = Duration::from_secs(5);
/// A descriptor is a few hundred bytes; annotations may be more.
const LONGEST_INPUT: u64 = 1 << 20;
/// containerd cuts at 32 KiB, and writes it into one line of its log.
const LONGEST_REASON: usize = 4096;

/// Whether a program of this name is to be the verifier.
pub(super) fn is_called(program: Option<&OsString>) -> bool {
    program.is_some_and(|program| Path::new(program).file_name() == Some(NAME.as_ref()))
}

/// What is to become of a pull.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Allowed(String),
    Refused(Kind, String),
}

/// Answers containerd.
pub(super) fn main() -> ExitCode {
    // A panic would end the process with a signal, which containerd takes for a failure of the
    // pull.
    std::panic::set_hook(Box::new(|panic| {
        say(&Answer::Allowed(format!("a fault of {NAME}: {panic}")));
        std::process::exit(0);
    }));
    let (to, from) = mpsc::channel();
    // In a thread of its own: a hung disk or credential helper holds up a runtime, not the clock.
    let started = thread::Builder::new().spawn(move || {
        let args: Vec<OsString> = std::env::args_os().skip(1).collect();
        let _ = to.send(answer(&args));
    });
    let answer = match started {
        Ok(_) => from.recv_timeout(DEADLINE).unwrap_or_else(|_| {
            let secs = DEADLINE.as_secs();
            Answer::Allowed(format!("no verdict within {secs} s"))
        }),
        Err(error) => Answer::Allowed(format!("cannot start: {error}")),
    };
    say(&answer);
    match answer {
        Answer::Allowed(_) => ExitCode::SUCCESS,
        Answer::Refused(kind, _) => ExitCode::from(kind.exit_code()),
    }
}

fn say(answer: &Answer) {
    let text = match answer {
        Answer::Allowed(why) => format!("allowed: {why}"),
        Answer::Refused(kind, why) => format!("{}: {why}", kind.name()),
    };
    let line = crate::redact::printable(&text, LONGEST_REASON);
    // Nobody who listens is no reason to refuse.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// The verdict, or why there is none.
fn answer(args: &[OsString]) -> Answer {
    let allowed = |error: Error| Answer::Allowed(explained(&error));
    let call = match Call::read(args, std::io::stdin().lock().take(LONGEST_INPUT)) {
        Ok(call) => call,
        Err(why) => return Answer::Allowed(why),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(judge(&call)).unwrap_or_else(allowed),
        Err(error) => Answer::Allowed(format!("cannot start the runtime: {error}")),
    }
}

/// What containerd says of the image.
#[derive(Debug)]
struct Call {
    /// By its digest; the tag may have moved since it was resolved.
    reference: Reference,
    /// As containerd was asked for it.
    named: Reference,
    digest: Digest,
}

/// What of the descriptor is of use.
#[derive(Deserialize)]
struct Input {
    digest: Digest,
}

impl Call {
    fn read(args: &[OsString], input: impl std::io::Read) -> Result<Self, String> {
        let (mut name, mut digest) = (None, None);
        let mut words = args.iter().map(|word| word.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            // Go's flags: one dash or two, the value behind `=` or in the next word.
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let Some(flag) = flag else {
                return Err(format!("`{word}` is not understood"));
            };
            let (flag, given) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (flag, None),
            };
            let place = match flag {
                "name" => &mut name,
                "digest" => &mut digest,
                "stdin-media-type" => {
                    let media = given.or_else(|| words.next()).unwrap_or_default();
                    if media != DESCRIPTOR {
                        return Err(format!(
                            "standard input of type `{media}` is not understood"
                        ));
                    }
                    continue;
                }
                _ => return Err(format!("the flag `{word}` is not understood")),
            };
            *place = given.or_else(|| words.next());
        }
        let name = name.ok_or("there is no -name")?;
        let digest = digest.ok_or("there is no -digest")?;
        let digest = Digest::parse(&digest).map_err(|_| format!("`{digest}` is no digest"))?;
        let mut text = Vec::new();
        let mut input = input;
        input
            .read_to_end(&mut text)
            .map_err(|error| format!("standard input cannot be read: {error}"))?;
        let descriptor: Input = serde_json::from_slice(&text)
            .map_err(|error| format!("standard input is no descriptor: {error}"))?;
        if descriptor.digest != digest {
            return Err("-digest and the descriptor name different documents".to_owned());
        }
        let parse = |text: &str| {
            Reference::parse(text).map_err(|why| format!("`{text}` is no image reference: {why}"))
        };
        let named = parse(&name)?;
        let reference = parse(&format!("{}@{digest}", named.repository()))?;
        Ok(Self {
            reference,
            named,
            digest,
        })
    }
}

async fn judge(call: &Call) -> Result<Answer> {
    let named = std::env::var_os("EDGEPULL_CONFIG").filter(|path| !path.is_empty());
    let config = Config::load(named.as_ref().map(Path::new))?;
    let session = Session::new(Flags::default(), config);
    // Which entry an engine takes, only the engine can say.
    let attached = session.attach(None).await?;
    let want = match session.asked("host", Some(&attached), false)? {
        Asked::One(want) => Want {
            // Where bytes are known they count, whatever a single manifest's label says.
            probation: true,
            ..*want
        },
        Asked::All => return Err(Error::new(Kind::Internal, "`host` is one platform")),
    };
    let client = session.client()?;
    let root = document(&attached, &client, call).await?;
    let single = matches!(root.kind, DocumentKind::Manifest(_));
    let store = StoreSource::new(attached.engine.clone());
    let repo = client.repository(&call.reference);
    let nearest = Nearest {
        near: &store,
        far: &repo,
    };
    let resolution = resolve(root, &nearest, &want).await?;
    if let Ok(picked) = &resolution.outcome
        && let Some(refused) = by_bytes(&session, &attached, &client, &want, picked).await?
    {
        return Ok(refused);
    }
    if single {
        // Its label alone proves nothing: where the bytes fit it is used with a warning.
        return Ok(Answer::Allowed(
            "a single manifest offers one thing, and its label is no proof".to_owned(),
        ));
    }
    Ok(verdict(call, resolution))
}

/// What the bytes prove against an image that is unpacked here already. Nothing is fetched for it.
async fn by_bytes(
    session: &Session,
    attached: &Attached,
    client: &Client,
    want: &Want,
    picked: &Picked,
) -> Result<Option<Answer>> {
    let store = StoreSource::new(attached.engine.clone());
    let Ok(choice) = picked.clone().complete(&store).await else {
        return Ok(None);
    };
    let events = Events::none();
    let puller = Puller {
        engine: &attached.engine,
        client,
        snapshotter: &attached.snapshotter,
        events: &events,
        state_dir: session.runtime_dir(),
        managed_by: "verifier",
        pin: false,
        unpack: true,
        room: None,
        jury: session.jury(want, Verify::None),
    };
    if !puller.is_unpacked(&choice).await? {
        return Ok(None);
    }
    let outcome = image::present(&choice);
    match puller.prove(&choice, outcome, Look::Once).await {
        Err(error) if matches!(error.kind(), Kind::Mislabelled | Kind::NotRunnable) => {
            Ok(Some(Answer::Refused(error.kind(), explained(&error))))
        }
        _ => Ok(None),
    }
}

/// What containerd resolved: out of its store, if it is there already, else by its digest from
/// where it came from.
async fn document(attached: &Attached, client: &Client, call: &Call) -> Result<Document> {
    if let Ok(Some(document)) = stored(&attached.engine, &call.digest).await {
        return Ok(document);
    }
    client.repository(&call.reference).get().await
}

/// What the labels prove.
fn verdict(call: &Call, resolution: Resolution) -> Answer {
    let has_images = resolution.entries.iter().any(may_be_image);
    match resolution.outcome {
        Ok(picked) => Answer::Allowed(format!(
            "{} is for {}",
            picked.leaf.descriptor.digest,
            picked
                .platform
                .map_or_else(|| "no named platform".to_owned(), |it| it.to_string())
        )),
        // Charts, signatures, files for other systems: nobody means to run them here.
        Err(error) if error.kind() == Kind::PlatformMissing && has_images => {
            Answer::Refused(error.kind(), explained(&advised(error, &call.named)))
        }
        Err(error) => Answer::Allowed(explained(&error)),
    }
}

fn may_be_image(entry: &Entry) -> bool {
    matches!(entry.kind, OfferKind::Image | OfferKind::Index)
}

/// One line with all that a person needs.
fn explained(error: &Error) -> String {
    let mut parts = vec![error.message().to_owned()];
    parts.extend(error.causes().iter().cloned());
    for (what, list) in [("wanted", error.wanted()), ("offered", error.offered())] {
        if !list.is_empty() {
            parts.push(format!("{what}: {}", list.join(", ")));
        }
    }
    if let Some(hint) = error.hint_text() {
        parts.push(format!("hint: {hint}"));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str], input: &str) -> Result<Call, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Call::read(&args, input.as_bytes())
    }

    #[test]
    fn what_containerd_says_is_understood_and_nothing_else() {
        let digest = Digest::of(b"1").to_string();
        let input = format!(r#"{{"mediaType":"x","size":7,"digest":"{digest}"}}"#);
        let other = input.replace(&digest, &Digest::of(b"2").to_string());
        let args = [
            "-name",
            "r.example:5000/a/b:1.0",
            "-digest",
            &digest,
            "-stdin-media-type",
            DESCRIPTOR,
        ];
        let call = read(&args, &input).expect("understood");
        assert_eq!(
            call.reference.typed(),
            format!("r.example:5000/a/b@{digest}")
        );
        assert_eq!(call.named.tag(), Some("1.0"));
        let (by, name) = (format!("--digest={digest}"), "-name=r.example/a@sha256:x");
        assert!(read(&["-name=r.example/a:1", &by], &input).is_ok());
        for (args, input) in [
            (&args[..], ""),
            (&args, "{}"),
            (&args, "garbage"),
            (&args, &other),
            (&args[..4], "[1]"),
            (&args[2..], &input),
            (&args[..2], &input),
            (&args[..3], &input),
            (&["-name", "r/a", "-digest", "sha256:1"], &input),
            (&["-name", "A B", "-digest", &digest], &input),
            (&[name, &by], &input),
            (&["-name", "r.example/a", &by, "-new"], &input),
            (&["-name", "r.example/a", &by, "word"], &input),
            (&["-name=r.example/a", &by, "-stdin-media-type=x"], &input),
            (&[], &input),
        ] {
            assert!(read(args, input).is_err(), "{args:?} {input}");
        }
    }

    #[test]
    fn it_goes_by_the_name_it_is_called_by() {
        let called = |name: &str| is_called(Some(&OsString::from(name)));
        assert!(called("edgepull-image-verifier"));
        assert!(called("/opt/verifiers/edgepull-image-verifier"));
        assert!(!called("edgepull"));
        assert!(!called("/edgepull-image-verifier/edgepull"));
        assert!(!is_called(None));
    }
}
