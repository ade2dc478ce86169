//! `make demo`: a private containerd and registry, a sample image for three platforms,
//! and the verbs on it, with the commands and their output as a user would see them.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a demonstration prints, and stops where it fails"
)]

use std::path::Path;
use std::process::{Command, ExitCode};

use edgepull_tests::agent::Agent;
use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::image;
use edgepull_tests::registry::Registry;
use edgepull_tests::scene::NAMESPACE as AGENTS;
use edgepull_tests::tools::Lab;

const NAMESPACE: &str = "demo";

fn main() -> ExitCode {
    let lab = Lab::get();
    let registry = Registry::start();
    image::hello().push(&registry, "latest", "demo/hello", "latest");
    image::only_s390x().push(&registry, "latest", "demo/mainframe", "latest");
    let daemon = Containerd::start(Version::V2);
    let out = lab.run_dir("demo");
    let hello = registry.reference("demo/hello", "latest");
    let mainframe = registry.reference("demo/mainframe", "latest");
    let demo = Demo {
        program: lab.edgepull(),
        socket: daemon.address(),
    };
    println!(
        "A registry at {} and containerd {} were started below build/lab.",
        registry.host(),
        daemon.version().exact()
    );

    let archive = out.path().join("hello-arm64.tar");
    let archive = archive.to_str().unwrap();
    let layout = format!("oci:{}", out.path().join("layout").display());
    let good = demo.says("What is this host, and what can it run?", &["detect"], 0)
        && demo.says(
            "What does the reference offer, and why is an entry (not) for this host?",
            &["explain", &hello],
            0,
        )
        && demo.says(
            "Does it offer what a fleet needs? (for CI)",
            &[
                "check",
                &hello,
                "--platform",
                "linux/arm64",
                "--platform",
                "linux/arm/v7",
            ],
            0,
        )
        && demo.says(
            "Pre-pull it into containerd: fetched, verified, unpacked, synced, pinned.",
            &["pull", "--pin", &hello],
            0,
        )
        && demo.runs(&daemon, &hello)
        && demo.says(
            "Run it for real, shut in, as CI does; nothing of it stays.",
            &["smoke", &hello],
            0,
        )
        && demo.says(
            "Again: one request, nothing written.",
            &["pull", "--pin", &hello],
            0,
        )
        && demo.says("What edgepull put here.", &["images"], 0)
        && demo.says(
            "An image that offers nothing for this host: exit code 3, and what to do.",
            &["pull", &mainframe],
            3,
        )
        && demo.says(
            "The arm64 image as an archive for a host without a network.",
            &[
                "export",
                &hello,
                "--platform",
                "linux/arm64",
                "--to",
                archive,
            ],
            0,
        )
        && demo.says(
            "The same pull without containerd and without root.",
            &["pull", "--store", &layout, &hello],
            0,
        )
        && demo.says("And away with it.", &["rm", &hello], 0)
        && keeps(&daemon, &hello, &mainframe);
    println!(
        "\n{}",
        if good {
            "The demo ended well; everything it started is being stopped."
        } else {
            "The demo FAILED."
        }
    );
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The daemon, which is usually systemd's to start.
fn keeps(daemon: &Containerd, hello: &str, mainframe: &str) -> bool {
    let mut agent = Agent::new(daemon);
    println!(
        "\n# The same by itself, for years: declare images, and a daemon keeps them here.\n\
         $ printf '%s\\n' {hello} {mainframe} >/etc/edgepull/images.d/mine.txt"
    );
    agent.declare("mine.txt", &format!("{hello}\n{mainframe}\n"));
    agent.start();
    let says = |agent: &Agent, why: &str, args: &[&str], expected: i32| {
        println!("\n# {why}\n$ edgepull {}", args.join(" "));
        let run = agent.call(args).run();
        print!("{}{}", run.text(), run.output.stderr);
        run.output.code == Some(expected)
    };
    says(
        &agent,
        "Until all is here: exit code 3, because one has no image for this host.",
        &["wait", "--timeout", "60s"],
        3,
    ) && says(&agent, "How it stands.", &["status"], 0)
        && {
            println!("\n# Somebody removes the image.\n$ ctr images rm {hello}");
            let removed = daemon.ctr(AGENTS, &["images", "rm", "--sync", hello]);
            removed.code == Some(0)
        }
        && says(&agent, "It comes back.", &["sync", hello], 0)
        && says(
            &agent,
            "And is what it should be, file by file.",
            &["repair", hello],
            0,
        )
        && agent.stop().output.code == Some(0)
}

struct Demo {
    program: std::path::PathBuf,
    socket: std::path::PathBuf,
}

impl Demo {
    fn says(&self, why: &str, args: &[&str], expected: i32) -> bool {
        println!("\n# {why}\n$ edgepull {}", args.join(" "));
        let status = Command::new(&self.program)
            .args(args)
            .env("CONTAINERD_ADDRESS", &self.socket)
            .env("CONTAINERD_NAMESPACE", NAMESPACE)
            .status();
        let code = status.ok().and_then(|status| status.code());
        if code == Some(expected) {
            return true;
        }
        println!("wanted exit code {expected}, got {code:?}");
        false
    }

    fn runs(&self, daemon: &Containerd, reference: &str) -> bool {
        println!("\n# Run it: no network needed any more.\n$ ctr run --rm {reference} demo");
        let ran = daemon.run(NAMESPACE, reference, &[]);
        println!("{}", ran.text().trim_end());
        Path::new(&self.socket).exists() && ran.code == Some(0)
    }
}
