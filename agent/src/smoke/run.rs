//! One run: fetch what is missing, make the container, watch it, say what came of it, clean up.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use containerd_client::types::Mount;
use edgepull_platform::{Host, How, Platform};
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Watch,
    classify::{self, Meaning, Outcome},
    clean, limits,
    output::Streams,
    place::{Place, Where},
    report::{Report, Stop},
    rootfs, spec,
    user::{self, Ids},
    wanted::Wanted,
};
use crate::{
    choice::Choice,
    clock,
    containerd::{
        Cause, Engine, Failure, Lease,
        containers::NewContainer,
        labels::{Labels, SMOKE, SMOKE_UNTIL},
    },
    error::{Error, Result},
    event::Events,
    kind::Kind,
    oci::Repository,
    proof::{self, Launch},
    pull::{Held, Holder},
    source::Source,
};

/// What a run may take besides its program: fetching is not counted, since the label is written
/// after it.
const MARGIN: Duration = Duration::from_secs(1800);
/// How long the end of a killed program is waited for before it is left to the cleaning.
const DEATH: Duration = Duration::from_secs(15);

/// Runs images in one engine.
#[derive(Debug, Clone)]
pub struct Smoke<'a> {
    pub engine: &'a Engine,
    pub snapshotter: &'a str,
    /// containerd's name of the runtime.
    pub runtime: &'a str,
    pub host: &'a Host,
    /// Where FIFOs and locks go; containerd has to see it under the same path.
    pub runtime_dir: &'a Path,
    /// Instead of the image's entrypoint and command, if it is not empty.
    pub command: &'a [String],
    pub watch: Watch,
    /// Bytes.
    pub memory: u64,
    pub events: &'a Events,
    pub stop: Stop,
}

/// One image to be run.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// As the user typed it.
    pub reference: &'a str,
    pub choice: &'a Choice,
    /// Where layers are fetched from that the store does not have.
    pub source: &'a dyn Source,
    /// Of a registry.
    pub repository: Option<&'a Repository>,
}

/// What the image's own files say.
struct Files {
    /// Else what is not in them.
    ids: Result<Ids, String>,
    volumes: Vec<spec::Volume>,
}

/// How a container ended.
enum End {
    Exited {
        code: u32,
        oom: bool,
    },
    StillRuns,
    /// The runtime could not start it, which is the image's fault.
    Refused {
        reason: String,
        says: String,
    },
}

impl Smoke<'_> {
    /// Takes away what earlier runs left whose processes were killed, in this engine and
    /// namespace. What could not be done is said.
    pub async fn sweep(&self) -> Vec<Error> {
        clean::sweep(self.engine, self.runtime_dir).await
    }

    /// Runs an image. An error is a run that did not come to a verdict.
    pub async fn run(&self, image: Image<'_>) -> Result<Report> {
        let platform = image.choice.platform.as_ref();
        // On probation the label is no promise, and running it tells.
        let promised = platform.filter(|_| image.choice.probation.is_none());
        if let Some(reason) = promised.and_then(|platform| self.excluded(platform)) {
            return Ok(Report::not_started(reason));
        }
        let wanted = Wanted::read(&image.choice.config)?;
        let args = wanted.args(self.command);
        if args.first().is_none_or(String::is_empty) {
            return Ok(Report::not_started(
                "the image names no program to run: neither entrypoint nor command".to_owned(),
            ));
        }
        let place = Place::new(self.runtime_dir, &Where::of(self.engine, self.snapshotter))?;
        let mut wrote = false;
        let ran = self.work(&place, image, &wanted, &args, &mut wrote).await;
        if let Err(error) = &ran
            && error.kind() == Kind::ContainerdUnavailable
        {
            // It was waited for long enough. The lock stays as a note to the next call.
            return ran;
        }
        let cleaned = clean::clean(self.engine, &place.id, self.snapshotter).await;
        let cleaned = match cleaned {
            Ok(()) => place.remove(),
            // The same.
            Err(error) => Err(error),
        };
        let cleaned = match cleaned {
            Ok(()) if wrote => self.engine.collect_garbage().await,
            other => other,
        };
        match (ran, cleaned) {
            (Ok(mut report), cleaned) => {
                if let Some(platform) = platform {
                    self.tell_emulation(platform, &mut report);
                }
                if let Err(error) = cleaned {
                    report.warnings.push(format!(
                        "not all of it could be taken away; the next smoke test tries again: {error}"
                    ));
                }
                Ok(report)
            }
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(other)) => Err(error.because(format_args!(
                "and not all of it could be taken away: {other}"
            ))),
        }
    }

    /// Why nothing here runs this platform, where that is proven.
    fn excluded(&self, platform: &Platform) -> Option<String> {
        if self.host.how(platform).is_some() {
            return None;
        }
        let reason = self.host.disproves(platform)?;
        Some(format!(
            "nothing on this host runs {platform}: {reason}, and no emulator for it is registered (binfmt_misc, with flag F)"
        ))
    }

    fn tell_emulation(&self, platform: &Platform, report: &mut Report) {
        let Some(runs) = self.host.how(platform) else {
            return;
        };
        if runs.how == How::Emulated {
            let by = runs.interpreter.as_deref().unwrap_or("an emulator");
            let told = format!("{platform} ran under emulation ({by})");
            report.reason = Some(match report.reason.take() {
                Some(reason) => format!("{reason}; {told}"),
                None => told,
            });
        }
    }

    async fn work(
        &self,
        place: &Place,
        image: Image<'_>,
        wanted: &Wanted,
        args: &[String],
        wrote: &mut bool,
    ) -> Result<Report> {
        let lease = Lease::acquire(self.engine, place.lease()).await?;
        let held = self.hold(&lease, image, wrote).await?;
        let mounts = lease
            .engine()?
            .prepare_container(self.snapshotter, &place.id, held.top.as_ref())
            .await?;
        let files = self.files(place, &mounts, wanted).await?;
        let ids = match files.ids {
            Ok(ids) => ids,
            Err(reason) => return Ok(Report::not_started(reason)),
        };
        let limits = limits::limits(Path::new("/"), self.memory);
        let spec = spec::spec(&spec::Container {
            id: &place.id,
            args,
            env: &wanted.env,
            cwd: &wanted.working_dir,
            user: &ids,
            volumes: &files.volumes,
            resources: &limits.resources,
            kernel: spec::Kernel::running(),
        });
        self.create(place, &spec).await?;
        let mut streams = Streams::open(&place.dir())?;
        let (stdout, stderr) = (streams.stdout(), streams.stderr());
        let drive = self.drive(&place.id, mounts.clone(), (&stdout, &stderr), &args[..1]);
        let (end, duration) = tokio::select! {
            ended = drive => ended?,
            () = streams.pump() => {
                return Err(Error::new(Kind::Internal, "the output of the program ended"));
            }
        };
        let (stdout, stderr) = streams.finish();
        let (mut report, judge) = self.judged(&end, duration, stdout, stderr);
        if judge && let Some(reason) = self.look(image, &mounts, args).await {
            report.reason = Some(reason);
        }
        if let End::Refused { says, .. } = end
            && let Some(reason) = &mut report.reason
        {
            reason.push_str("; the runtime says: ");
            reason.push_str(&says);
        }
        report.warnings.extend(limits.missing.iter().map(|name| {
            format!("it ran without a limit for {name}: this host has no such control group")
        }));
        Ok(report)
    }

    async fn hold(&self, lease: &Lease, image: Image<'_>, wrote: &mut bool) -> Result<Held> {
        let holder = Holder {
            engine: self.engine,
            lease,
            snapshotter: self.snapshotter,
            events: self.events,
        };
        // Unless it ends well and says otherwise.
        *wrote = true;
        let held = tokio::select! {
            held = holder.hold(image.reference, image.choice, image.source, image.repository) => held?,
            error = lease.keep() => return Err(error),
            error = self.stop.asked() => return Err(error),
        };
        *wrote = held.written;
        Ok(held)
    }

    /// What the image's own files say about running it.
    async fn files(&self, place: &Place, mounts: &[Mount], wanted: &Wanted) -> Result<Files> {
        let (user, paths) = (wanted.user.clone(), wanted.volumes());
        let by_files = user::needs_files(&user);
        if !by_files && paths.is_empty() {
            return Ok(Files {
                ids: Ok(Ids::default()),
                volumes: Vec::new(),
            });
        }
        let paths: Vec<String> = paths.into_iter().map(str::to_owned).collect();
        let (by_user, at) = (user.clone(), paths.clone());
        let seen = rootfs::within(mounts, place.root(), move |root| {
            let read = |path: &str| {
                root.text(path).map_err(|error| {
                    Error::new(
                        Kind::InvalidContent,
                        format_args!("cannot read the image's {path}"),
                    )
                    .caused_by(&error)
                })
            };
            let ids = if by_files {
                user::ids(&by_user, &read("/etc/passwd")?, &read("/etc/group")?)
            } else {
                Ok(Ids::default())
            };
            let like = |path: String| spec::Volume {
                like: root.directory(&path),
                path,
            };
            Ok(Files {
                ids,
                volumes: at.into_iter().map(like).collect(),
            })
        });
        match seen.await.and_then(|files| files) {
            Ok(files) => Ok(files),
            // Who may not mount, as the daemon in its unit, looks into the layers; volumes are the
            // user's own then. Where that is not possible either (another snapshotter, another
            // machine), nothing is decided if the user is a number.
            Err(error) => {
                tracing::debug!(%error, "the image cannot be mounted to look at its files");
                let texts = proof::texts(mounts, &["/etc/passwd", "/etc/group"]).await;
                let ids = match texts.as_deref() {
                    Ok([passwd, group]) => {
                        let text = |file: &Option<String>| file.clone().unwrap_or_default();
                        user::ids(&user, &text(passwd), &text(group))
                    }
                    _ => Ok(user::ids(&user, "", "").map_err(|_| error)?),
                };
                let owner = ids.clone().unwrap_or_default();
                let own = |path| spec::Volume {
                    path,
                    like: Some(rootfs::Directory {
                        uid: owner.uid,
                        gid: owner.gid,
                        mode: 0o755,
                    }),
                };
                Ok(Files {
                    ids,
                    volumes: paths.into_iter().map(own).collect(),
                })
            }
        }
    }

    async fn create(&self, place: &Place, spec: &serde_json::Value) -> Result<()> {
        let until = SystemTime::now() + self.watch.limit() + MARGIN;
        let until = Timestamp::try_from(until).unwrap_or(Timestamp::MAX);
        let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let new = NewContainer {
            id: &place.id,
            labels: Labels::from([
                (SMOKE.to_owned(), clock::boot(Path::new("/"))),
                (SMOKE_UNTIL.to_owned(), until),
            ]),
            runtime: self.runtime,
            spec: serde_json::to_vec(spec).map_err(|error| {
                Error::new(Kind::Internal, "cannot encode the container").caused_by(&error)
            })?,
            snapshotter: self.snapshotter,
            snapshot: &place.id,
        };
        let created = self.engine.create_container(new).await;
        created.map_err(|failure| self.runtime_failed(failure))
    }

    /// Runs the container's task to its end, or to the end of patience. The time is the program's.
    async fn drive(
        &self,
        id: &str,
        mounts: Vec<Mount>,
        (stdout, stderr): (&str, &str),
        program: &[String],
    ) -> Result<(End, Duration)> {
        let program = program.first().map(String::as_str).unwrap_or_default();
        let refused = |failure: Failure| {
            let says = failure.error.causes().join(": ");
            match classify::refused(&says, program) {
                Some(reason) if failure.cause != Cause::Disconnected => Ok((
                    End::Refused {
                        reason: reason.to_owned(),
                        says,
                    },
                    Duration::ZERO,
                )),
                _ => Err(self.runtime_failed(failure)),
            }
        };
        let pid = match self.engine.create_task(id, mounts, stdout, stderr).await {
            Ok(pid) => pid,
            Err(failure) => return refused(failure),
        };
        let oom = limits::oom_file(pid);
        let begun = Instant::now();
        if let Err(failure) = self.engine.start_task(id).await {
            return refused(failure);
        }
        let exited = tokio::select! {
            code = self.engine.wait_task(id) => {
                Some(code.map_err(|failure| lost(&failure))?)
            }
            () = sleep(self.watch.limit()) => None,
            error = self.stop.asked() => return Err(error),
        };
        let duration = begun.elapsed();
        let end = if let Some(code) = exited {
            // Counted before the control group goes with the task.
            let oom = oom.is_some_and(|file| limits::oom_kills(&file) > 0);
            End::Exited { code, oom }
        } else {
            self.engine.kill_task(id).await?;
            let _ = timeout(DEATH, self.engine.wait_task(id)).await;
            End::StillRuns
        };
        // Then all that it printed has left the runtime. What fails here fails again, and is
        // told, when it is cleaned.
        let _ = timeout(DEATH, self.engine.delete_task(id)).await;
        Ok((end, duration))
    }

    /// The report; and whether a look at the files may say more about the reason.
    fn judged(
        &self,
        end: &End,
        duration: Duration,
        stdout: String,
        stderr: String,
    ) -> (Report, bool) {
        let mut report = Report {
            outcome: Outcome::Passed,
            exit_code: None,
            signal: None,
            duration,
            stdout,
            stderr,
            reason: None,
            warnings: Vec::new(),
        };
        let mut look = false;
        match end {
            End::Exited { code, oom } => {
                let Meaning {
                    outcome,
                    signal,
                    reason,
                    by_runtime,
                } = classify::ended(classify::Ended {
                    code: *code,
                    oom: *oom,
                    stdout: &report.stdout,
                    stderr: &report.stderr,
                });
                (report.outcome, report.signal, report.reason) = (outcome, signal, reason);
                report.exit_code = Some(*code);
                look = by_runtime;
            }
            End::StillRuns => match self.watch {
                Watch::Ends(limit) => {
                    report.outcome = Outcome::Timeout;
                    report.reason = Some(format!(
                        "it still ran after {} s and was killed; for a service say how long it has to be alive (`--alive`)",
                        limit.as_secs_f64()
                    ));
                }
                Watch::Alive(limit) => {
                    report.reason = Some(format!("alive after {} s", limit.as_secs_f64()));
                }
            },
            End::Refused { reason, .. } => {
                report.outcome = Outcome::NotRunnable;
                report.reason = Some(reason.clone());
                look = true;
            }
        }
        (report, look)
    }

    /// What the files themselves say against the program, if they can be looked at.
    async fn look(&self, image: Image<'_>, mounts: &[Mount], args: &[String]) -> Option<String> {
        let launch = Launch::of(&image.choice.config)?.with_command(args.to_vec());
        let proof = proof::of_mounts(mounts, launch, Vec::new(), self.host).await;
        match proof {
            // Nothing is mounted in a run, so that a doubt about a file that was found is a reason,
            // too. Of one that was not, the runtime's own words say as much.
            Ok(proof) if !proof.verdict.runs() && !proof.chain.is_empty() => {
                let reason = proof.verdict.reason()?;
                Some(format!("{}: {reason}", args.first()?))
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "the files of the image cannot be looked at");
                None
            }
        }
    }

    /// A failure that is not the image's.
    fn runtime_failed(&self, failure: Failure) -> Error {
        let text = failure.error.causes().join(": ");
        let unknown = ["binary not installed", "invalid runtime name", "runtime \""]
            .iter()
            .any(|part| text.contains(part));
        let error = failure.error;
        if unknown {
            return error
                .during(format_args!(
                    "containerd cannot use the runtime `{}`",
                    self.runtime.escape_debug()
                ))
                .with_kind(Kind::Config)
                .hint(format_args!(
                    "name one whose shim is installed beside containerd; it is {} unless --runtime says otherwise",
                    super::RUNTIME
                ));
        }
        if failure.cause != Cause::Other {
            return error;
        }
        error
            .during("the container runtime could not start a container")
            .with_kind(Kind::Unsupported)
            .hint("this is the host's or the runtime's fault, not the image's: does `ctr run` start one?")
    }
}

fn lost(failure: &Failure) -> Error {
    let error = failure.error.clone();
    if failure.cause == Cause::Missing {
        return error
            .during("the container went away while it ran")
            .with_kind(Kind::Unavailable)
            .hint("somebody deleted it, or its shim died; containerd's log has more");
    }
    error
}
