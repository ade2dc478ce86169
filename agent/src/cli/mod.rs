//! The command line: arguments in, text or JSON out, an exit code at the end.

mod args;
mod command;
mod context;
mod output;
mod progress;
mod verifier;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use self::{
    args::{Cli, Verb},
    context::Context,
    output::Printer,
};
use crate::{
    config::Config,
    daemon::journal::Journal,
    error::{Error, Result},
    kind::Kind,
    smoke::Stop,
};

/// What a verb ends with: the kinds of its failures, already printed.
pub(crate) type Failures = Vec<Kind>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if verifier::is_called(std::env::args_os().next().as_ref()) {
        return verifier::main();
    }
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` end here as well, with success.
            if error.use_stderr() && wants_json(std::env::args_os()) {
                Printer::new(args::Output::Json)
                    .document(&serde_json::json!({ "error": usage(&error) }));
            }
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                Kind::Usage.exit_code()
            } else {
                0
            });
        }
    };
    if cli.verb.progress() == Some(args::Progress::Json) {
        output::stderr_is_json();
    }
    log_to_stderr(cli.global.quiet, cli.global.verbose);
    let printer = Printer::new(cli.global.output);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(until_stopped(cli, printer));
            // Blocking work that is still under way (a slow disk) must not hold up the exit.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(Error::new(Kind::Internal, "cannot start the runtime").caused_by(&error)),
    };
    match ended {
        Ok(mut failures) => {
            // A result that nobody can read is none, whatever was done.
            if let Some(error) = output::unwritten() {
                output::print_error(error);
                failures.push(error.kind());
            }
            ExitCode::from(Kind::worst(failures).map_or(0, Kind::exit_code))
        }
        Err(error) => {
            if printer.json() {
                printer.document(&serde_json::json!({ "error": error }));
            }
            output::print_error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// The command line. A variable that is set to nothing is as good as not set.
fn parse() -> Result<Cli, clap::Error> {
    let command = without_empty(Cli::command(), &|name| {
        std::env::var_os(name).is_some_and(|value| value.is_empty())
    });
    Cli::from_arg_matches(&command.try_get_matches()?)
}

/// The command, its verbs as well, without the variables that are empty.
fn without_empty(
    mut command: clap::Command,
    is_empty: &dyn Fn(&std::ffi::OsStr) -> bool,
) -> clap::Command {
    let empty: Vec<clap::Id> = command
        .get_arguments()
        .filter(|arg| arg.get_env().is_some_and(is_empty))
        .map(|arg| arg.get_id().clone())
        .collect();
    for id in empty {
        command = command.mut_arg(id, |arg| arg.env(clap::builder::Resettable::Reset));
    }
    command.mut_subcommands(|verb| without_empty(verb, is_empty))
}

/// Whether JSON was asked for on a command line that does not parse.
fn wants_json(args: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let mut asked = false;
    let mut value_follows = false;
    for arg in args.skip(1).take_while(|arg| arg != "--") {
        let text = arg.to_string_lossy();
        if value_follows {
            asked = text == "json";
        }
        value_follows = text == "-o" || text == "--output";
        if let Some(value) = text
            .strip_prefix("--output=")
            .or_else(|| text.strip_prefix("-o="))
            .or_else(|| text.strip_prefix("-o").filter(|value| !value.is_empty()))
        {
            asked = value == "json";
        }
    }
    asked
}

/// A command line that does not parse, as one failure among others.
fn usage(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    Error::new(Kind::Usage, line.strip_prefix("error: ").unwrap_or(line))
        .hint("`edgepull --help` has the verbs and their options")
}

/// The verb, or `cancelled` when a signal comes first.
async fn until_stopped(cli: Cli, printer: Printer) -> Result<Failures> {
    use tokio::signal::unix::{SignalKind, signal};

    // The daemon ends in its own way, and its worker with it.
    if matches!(&cli.verb, Verb::Agent(agent) if !agent.once) {
        let (_nobody, stop) = Stop::new();
        return Box::pin(run(cli, printer, stop)).await;
    }
    // Both before any work: until then a signal would end the process without a word.
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Error::new(Kind::Internal, "cannot listen for signals").caused_by(&error)
        })
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let stopped = |name: &str| {
        Error::new(Kind::Cancelled, format_args!("stopped by {name}"))
            .hint("what was fetched so far is kept; run the same command again to go on")
    };
    // What it runs has to be ended, and taken away.
    let cleans_up = matches!(cli.verb, Verb::Smoke(_));
    let (tell, stop) = Stop::new();
    let mut work = Box::pin(run(cli, printer, stop));
    let name = tokio::select! {
        ended = &mut work => return ended,
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    };
    if cleans_up {
        tell.send_replace(Some(format!("stopped by {name}")));
        return work.await;
    }
    Err(stopped(name))
}

async fn run(cli: Cli, printer: Printer, stop: Stop) -> Result<Failures> {
    let rate = match &cli.verb {
        Verb::Pull(pull) => pull.limit_rate,
        _ => None,
    };
    let config = match &cli.verb {
        // They say what the program is, whatever is configured.
        Verb::Completions { .. } | Verb::Man | Verb::Version
        // The daemon has read its own; a fault in the file is one of the things they show.
        | Verb::Status { .. } | Verb::Sync { .. } | Verb::Wait { .. }
        // It reads its own, again and again.
        | Verb::Agent(_) => Config::default(),
        _ => Config::load(cli.global.config.as_deref())?,
    };
    let context = Context::new(cli.global, config, printer, rate);
    match cli.verb {
        Verb::Detect { record } => command::detect::run(&context, record.as_deref()).await,
        Verb::Inspect(look) => command::inspect::run(&context, &look, false).await,
        Verb::Explain(look) => command::inspect::run(&context, &look, true).await,
        Verb::Check {
            references,
            platform,
        } => command::check::run(&context, &references, &platform.platforms).await,
        Verb::Pull(pull) => command::pull::run(&context, &pull).await,
        Verb::Verify(verify) => Box::pin(command::verify::run(&context, &verify)).await,
        Verb::Smoke(smoke) => Box::pin(command::smoke::run(&context, &smoke, stop)).await,
        Verb::Agent(agent) => {
            let global = context.global.clone();
            Box::pin(command::agent::run(&context, &global, &agent)).await
        }
        Verb::Images { all } => command::images::list(&context, all).await,
        Verb::Rm { references, force } => {
            command::images::remove(&context, &references, force).await
        }
        Verb::Prune {
            dry_run,
            release: false,
        } => command::prune::run(&context, dry_run).await,
        Verb::Prune { dry_run, .. } => command::release::run(&context, dry_run).await,
        Verb::Repair(repair) => command::repair::run(&context, &repair).await,
        Verb::Export {
            references,
            platform,
            to,
            fresh,
            progress,
        } => {
            let export = command::export::Export {
                references,
                platforms: platform.platforms,
                to,
                fresh,
                progress,
            };
            command::export::run(&context, &export).await
        }
        Verb::Import {
            file,
            platform,
            no_unpack,
            pin,
            progress,
        } => {
            let import = command::export::Import {
                file,
                platforms: platform.platforms,
                unpack: !no_unpack,
                pin,
                progress,
            };
            command::export::import(&context, &import).await
        }
        Verb::Status {
            reference,
            ready,
            daemon,
        } => command::status::run(&context, &daemon.socket, reference.as_deref(), ready).await,
        Verb::Sync {
            reference,
            no_wait,
            daemon,
        } => command::status::sync(&context, &daemon.socket, reference.as_deref(), !no_wait).await,
        Verb::Wait { timeout, daemon } => {
            command::wait::run(&context, &daemon.socket, timeout).await
        }
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "edgepull", &mut text);
            context.printer.text(&String::from_utf8_lossy(&text));
            Ok(Failures::new())
        }
        Verb::Man => {
            context.printer.text(&man_page()?);
            Ok(Failures::new())
        }
        Verb::Version => {
            let version = env!("CARGO_PKG_VERSION");
            if context.printer.json() {
                context
                    .printer
                    .document(&serde_json::json!({ "version": version }));
            } else {
                context.printer.text(&format!("edgepull {version}\n"));
            }
            Ok(Failures::new())
        }
    }
}

/// edgepull(1): the command and every verb in one page.
fn man_page() -> Result<String> {
    let render = |command: clap::Command| -> std::io::Result<Vec<u8>> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        Ok(page)
    };
    let failed = |error: std::io::Error| {
        Error::new(Kind::Internal, "cannot render the manual page").caused_by(&error)
    };
    let mut command = Cli::command();
    command.build();
    let mut text = render(command.clone()).map_err(failed)?;
    for verb in command
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help")
    {
        let mut section = Vec::new();
        let man = clap_mangen::Man::new(verb.clone());
        let name = verb.get_name().to_uppercase();
        section.extend_from_slice(format!(".SH {name}\n").as_bytes());
        man.render_description_section(&mut section)
            .map_err(failed)?;
        man.render_options_section(&mut section).map_err(failed)?;
        // Sections of a verb are sub-sections of the page.
        let shown = String::from_utf8_lossy(&section);
        let shown =
            shown
                .replacen(".SH DESCRIPTION", ".PP", 1)
                .replacen(".SH OPTIONS", ".SS Options", 1);
        text.extend_from_slice(shown.as_bytes());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Logs go to stderr, or with their fields to the journal that is behind it; `EDGEPULL_LOG` (`info`, `edgepull=debug,hyper=info`) wins over -q and -v.
fn log_to_stderr(quiet: bool, verbose: u8) {
    use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

    let journal = Journal::behind_stderr();
    let default = match (quiet, verbose) {
        (true, _) => "error",
        // Nobody looks on there: what happened is to be found later.
        (false, 0) if journal.is_some() => "edgepull=info,error",
        (false, 0) => "edgepull=warn,error",
        (false, 1) => "edgepull=debug,info",
        (false, _) => "edgepull=trace,debug",
    };
    let filter: Targets = std::env::var("EDGEPULL_LOG")
        .ok()
        .and_then(|text| text.parse().ok())
        .or_else(|| default.parse().ok())
        .unwrap_or_default();
    let lines = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(output::LogWriter::default)
            // It would panic where stderr is closed.
            .log_internal_errors(false)
            .with_target(verbose > 1)
            .with_ansi(output::colour_on_stderr())
    });
    // A second initialisation (tests in one process) is harmless.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(lines)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_variables_do_not_count_for_verbs_either() {
        let variables = |empty: &[&str]| {
            let command = without_empty(Cli::command(), &|name| {
                empty.iter().any(|empty| name == *empty)
            });
            let verbs = command
                .get_subcommands()
                .flat_map(clap::Command::get_arguments);
            let all = command.get_arguments().chain(verbs);
            all.filter_map(|arg| arg.get_env()?.to_str())
                .map(str::to_owned)
                .collect::<std::collections::BTreeSet<_>>()
        };
        let mut all = variables(&[]);
        let empty = ["EDGEPULL_SOCKET", "CONTAINERD_NAMESPACE"];
        for name in empty {
            assert!(all.remove(name), "{name} is none");
        }
        assert_eq!(variables(&empty), all);
    }
}
