//! `smoke`: run images for real; one row for each reference and platform, the worst as exit code.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::super::{
    Failures, args,
    context::{Context, Target, state_dir},
    output, progress,
};
use crate::{
    asked::{Asked, wants_of},
    desired::Verify,
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::Document,
    pull::{Choice, Puller, image},
    resolve::Want,
    session::Attached,
    smoke::{Image, Outcome, Report, Smoke, Stop, Watch, junit},
};

#[derive(Serialize)]
struct Row {
    schema: &'static str,
    reference: String,
    platform: String,
    selected_platform: Option<String>,
    namespace: String,
    snapshotter: String,
    runtime: String,
    /// Null where it did not come to a verdict; then the error says why.
    outcome: Option<Outcome>,
    exit_code: Option<u32>,
    signal: Option<&'static str>,
    duration_ms: u64,
    output_tail: String,
    reason: Option<String>,
    warnings: Vec<String>,
    error: Option<Error>,
    #[serde(skip)]
    report: Option<Report>,
}

pub(crate) async fn run(context: &Context, call: &args::Smoke, stop: Stop) -> Result<Failures> {
    if context.global.sysroot.is_some() {
        return Err(Error::new(
            Kind::Usage,
            "a recorded host (`--sysroot`) cannot run anything",
        )
        .hint("`edgepull check` and `edgepull explain` judge for a recorded host"));
    }
    if let Some(path) = &call.junit {
        junit::check(path)?;
    }
    let attached = context.attach().await?;
    let asked = context.wants(&call.platform.platforms, Some(&attached), false)?;
    // Wrong references end the call before any work.
    let mut targets = Vec::new();
    for typed in &call.references {
        targets.push(open(context, typed).await?);
    }
    let events = progress::observer(call.progress, context.global.quiet);
    let runtime_dir = state_dir();
    let smoke = Smoke {
        engine: &attached.engine,
        snapshotter: &attached.snapshotter,
        runtime: &call.runtime,
        host: context.host()?,
        runtime_dir: &runtime_dir,
        command: &call.command,
        watch: match call.alive {
            Some(limit) => Watch::Alive(limit),
            None => Watch::Ends(call.timeout),
        },
        memory: call.memory,
        events: &events,
        stop,
    };
    for error in smoke.sweep().await {
        output::warn(&format!(
            "warning: what an earlier smoke test left cannot be taken away: {error}"
        ));
    }
    let mut rows = Vec::new();
    for (typed, target) in call.references.iter().zip(&targets) {
        for one in &asked {
            let job = Job {
                context,
                attached: &attached,
                smoke: &smoke,
                events: &events,
                typed,
            };
            for row in Box::pin(job.run(target, one)).await {
                let cancelled = row.error.clone().filter(|e| e.kind() == Kind::Cancelled);
                if !context.printer.json() {
                    show(context, &row);
                }
                rows.push(row);
                // All of it is cleaned by now.
                if let Some(error) = cancelled {
                    return Err(error);
                }
            }
        }
    }
    print(context, &rows);
    if let Some(path) = &call.junit {
        junit::write(path, &xml(&rows))?;
    }
    Ok(rows
        .iter()
        .filter_map(|row| row.error.as_ref().map(Error::kind))
        .collect())
}

/// A reference that does not parse ends the call; a layout that cannot be read is one row.
async fn open(context: &Context, typed: &str) -> Result<Result<Target>> {
    match context.target(typed).await {
        Ok(target) => Ok(Ok(target)),
        Err(error)
            if matches!(
                error.kind(),
                Kind::InvalidReference | Kind::Usage | Kind::Config
            ) =>
        {
            Err(error)
        }
        Err(error) => Ok(Err(error)),
    }
}

/// One reference.
struct Job<'a> {
    context: &'a Context,
    attached: &'a Attached,
    smoke: &'a Smoke<'a>,
    events: &'a Events,
    typed: &'a str,
}

impl Job<'_> {
    async fn run(&self, target: &Result<Target>, asked: &Asked) -> Vec<Row> {
        let target = match target {
            Ok(target) => target,
            Err(error) => return vec![self.failed(asked.text(), error.clone())],
        };
        let wants = match asked {
            Asked::One(want) => Ok(vec![want.as_ref().clone()]),
            Asked::All => self.every(target, asked).await,
        };
        let mut wants = match wants {
            Ok(wants) => wants,
            Err(error) => return vec![self.failed(asked.text(), error)],
        };
        for want in &mut wants {
            // As `pull` does: a single image with a label that does not fit may fit all the same.
            want.probation = self.context.session().judges(Verify::None);
        }
        let mut rows = Vec::new();
        for want in &wants {
            rows.push(Box::pin(self.one(target, want)).await);
            if rows
                .last()
                .and_then(|row| row.error.as_ref())
                .is_some_and(|error| error.kind() == Kind::Cancelled)
            {
                break;
            }
        }
        rows
    }

    /// `--platform all`: each image entry as a want of its own.
    async fn every(&self, target: &Target, asked: &Asked) -> Result<Vec<Want>> {
        let root = target.root().await?;
        wants_of(asked, &root, target.source(), self.context.host().ok()).await
    }

    async fn one(&self, target: &Target, want: &Want) -> Row {
        self.events.emit(&Event::Resolving {
            reference: self.typed.to_owned(),
        });
        let chosen = self
            .smoke
            .stop
            .unless(Box::pin(self.choose(target, want)))
            .await;
        let (choice, ended) = match chosen {
            Ok(choice) => {
                let repository = match target {
                    Target::Registry { reference, .. } => Some(reference.repository()),
                    Target::Local { .. } => None,
                };
                let image = Image {
                    reference: self.typed,
                    choice: &choice,
                    source: target.source(),
                    repository,
                };
                let ended = Box::pin(self.smoke.run(image)).await;
                (Some(choice), ended)
            }
            Err(error) => (None, Err(error)),
        };
        let client = self.context.client();
        let notices = client.map_or_else(|_| Vec::new(), crate::registry::Client::take_notices);
        let doubt = choice.as_ref().and_then(|choice| choice.probation.clone());
        let mut row = match (ended, doubt) {
            // Its bytes do not fit either.
            (Ok(report), Some(misfit)) if report.outcome == Outcome::NotRunnable => {
                self.failed(&want.asked, *misfit)
            }
            (Ok(mut report), Some(misfit)) => {
                let warning =
                    format!("its label does not fit, and it was run all the same: {misfit}");
                report.warnings.push(warning);
                self.row(&want.asked, report)
            }
            (Ok(report), None) => self.row(&want.asked, report),
            (Err(error), _) => {
                let error = notices.iter().fold(error, Error::because);
                self.failed(&want.asked, error)
            }
        };
        row.warnings.extend(notices);
        row.selected_platform = choice.and_then(|c| c.platform.map(|p| p.to_string()));
        self.events.emit(&Event::Finished {
            reference: self.typed.to_owned(),
            ok: row.error.is_none(),
        });
        row
    }

    /// The image, exactly as `pull` chooses it.
    async fn choose(&self, target: &Target, want: &Want) -> Result<Choice> {
        let choice = match target {
            Target::Registry { reference, repo } => {
                let runtime_dir = state_dir();
                let puller = Puller {
                    engine: &self.attached.engine,
                    client: self.context.client()?,
                    snapshotter: &self.attached.snapshotter,
                    events: self.events,
                    state_dir: &runtime_dir,
                    managed_by: "cli",
                    pin: false,
                    unpack: true,
                    room: None,
                    // What the bytes are worth is seen when they run.
                    jury: None,
                };
                puller.find(reference, repo, want).await?.choice().clone()
            }
            Target::Local { local, .. } => {
                let root: Document = target.root().await?;
                image::choose(self.typed, root, local.source(), want, self.events).await?
            }
        };
        if image::is_artifact(&choice) {
            return Err(Error::new(
                Kind::Unsupported,
                "the reference offers an artifact here, which is delivered and not run",
            )
            .hint("`edgepull pull --artifact-dir DIR` writes its files"));
        }
        Ok(choice)
    }

    fn row(&self, platform: &str, report: Report) -> Row {
        let error = report
            .error(self.typed)
            .map(|error| error.platform(platform));
        let host = self.context.host().ok();
        let error = match host {
            Some(host) => error.map(|error| error.host(&host.platform)),
            None => error,
        };
        Row {
            outcome: Some(report.outcome),
            exit_code: report.exit_code,
            signal: report.signal,
            duration_ms: u64::try_from(report.duration.as_millis()).unwrap_or(u64::MAX),
            output_tail: report.output_tail(),
            reason: report.reason.clone(),
            warnings: report.warnings.clone(),
            error,
            report: Some(report),
            ..self.empty(platform)
        }
    }

    fn failed(&self, platform: &str, error: Error) -> Row {
        let error = if error.kind() == Kind::Cancelled {
            error
        } else {
            error.during(format_args!("cannot try `{}`", self.typed))
        };
        Row {
            error: Some(error.reference(self.typed).platform(platform)),
            ..self.empty(platform)
        }
    }

    fn empty(&self, platform: &str) -> Row {
        Row {
            schema: "edgepull.smoke/1",
            reference: self.typed.to_owned(),
            platform: platform.to_owned(),
            selected_platform: None,
            namespace: self.attached.profile.namespace.clone(),
            snapshotter: self.attached.snapshotter.clone(),
            runtime: self.smoke.runtime.to_owned(),
            outcome: None,
            exit_code: None,
            signal: None,
            duration_ms: 0,
            output_tail: String::new(),
            reason: None,
            warnings: Vec::new(),
            error: None,
            report: None,
        }
    }
}

fn word(row: &Row) -> &'static str {
    row.outcome.map_or("error", Outcome::name)
}

fn seconds(row: &Row) -> String {
    format!(
        "{:.1} s",
        Duration::from_millis(row.duration_ms).as_secs_f64()
    )
}

/// One line as soon as it is known, and what helps to understand a failure.
fn show(context: &Context, row: &Row) {
    let platform = row.selected_platform.as_deref().unwrap_or(&row.platform);
    let word = word(row);
    let word = if row.outcome == Some(Outcome::Passed) {
        context.printer.green(word)
    } else {
        context.printer.bold(word)
    };
    let mut text = format!(
        "{word} {} {} {}",
        output::plain(&row.reference),
        output::plain(platform),
        seconds(row)
    );
    if let Some(reason) = &row.reason {
        text.push_str(": ");
        text.push_str(&output::plain(reason));
    }
    text.push('\n');
    if row
        .outcome
        .is_some_and(|outcome| outcome != Outcome::Passed)
    {
        for line in row.output_tail.lines() {
            text.push_str("  | ");
            text.push_str(&output::plain(line));
            text.push('\n');
        }
    }
    context.printer.text(&text);
    for warning in &row.warnings {
        output::warn(&format!("warning: {warning}"));
    }
    if row.outcome.is_none()
        && let Some(error) = row.error.as_ref().filter(|e| e.kind() != Kind::Cancelled)
    {
        output::print_error(error);
    }
}

fn print(context: &Context, rows: &[Row]) {
    if context.printer.json() {
        context.printer.document(&rows);
        return;
    }
    if rows.len() < 2 {
        return;
    }
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let code = row
                .exit_code
                .map_or("-".to_owned(), |code| code.to_string());
            vec![
                word(row).to_owned(),
                row.reference.clone(),
                row.platform.clone(),
                row.selected_platform
                    .clone()
                    .unwrap_or_else(|| "-".to_owned()),
                row.signal.map_or(code, str::to_owned),
                seconds(row),
            ]
        })
        .collect();
    let head = ["RESULT", "REFERENCE", "WANTED", "SELECTED", "EXIT", "TIME"];
    context.printer.text(&output::table(&head, &table));
}

fn xml(rows: &[Row]) -> String {
    let stories: Vec<(String, String)> = rows
        .iter()
        .map(|row| match &row.error {
            Some(error) => {
                let line = row.reason.clone();
                (
                    line.unwrap_or_else(|| error.message().to_owned()),
                    output::render_error(error),
                )
            }
            None => (String::new(), String::new()),
        })
        .collect();
    let cases: Vec<junit::Case<'_>> = rows
        .iter()
        .zip(&stories)
        .map(|(row, (line, story))| junit::Case {
            class: &row.reference,
            name: &row.platform,
            time: Duration::from_millis(row.duration_ms),
            result: match (&row.error, row.outcome) {
                (None, _) => junit::Status::Passed,
                (Some(error), Some(_)) => junit::Status::Failed(error.kind().name(), line, story),
                (Some(error), None) => junit::Status::Error(error.kind().name(), line, story),
            },
            stdout: row.report.as_ref().map_or("", |report| &report.stdout),
            stderr: row.report.as_ref().map_or("", |report| &report.stderr),
        })
        .collect();
    junit::document("edgepull smoke", &cases, Timestamp::now())
}
