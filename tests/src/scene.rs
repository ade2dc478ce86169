//! A registry with an image in it and a daemon that lacks it: where most scenarios begin.

use serde_json::Value;

use crate::containerd::{Containerd, Setup, Version};
use crate::edgepull::{Edgepull, Run};
use crate::faulty::{Faulty, Rule};
use crate::image::{Layout, Platform, host};

/// The namespace of scenarios that are not about a namespace.
pub const NAMESPACE: &str = "lab";

/// A daemon and a registry that writes down what it is asked.
#[derive(Debug)]
pub struct Scene {
    /// The daemon.
    pub daemon: Containerd,
    /// The registry; it serves [`Self::layout`], any repository.
    pub registry: Faulty,
    /// What to pull.
    pub reference: String,
}

impl Scene {
    /// A well-behaved registry and the usual daemon.
    #[track_caller]
    pub fn new(version: Version, layout: Layout) -> Self {
        Self::with(Setup::new(version), layout, [])
    }

    /// Any daemon, any script.
    #[track_caller]
    pub fn with(setup: Setup, layout: Layout, rules: impl IntoIterator<Item = Rule>) -> Self {
        let registry = Faulty::start(layout, rules);
        let reference = registry.reference("lab/app", "latest");
        Self {
            daemon: setup.start(),
            registry,
            reference,
        }
    }

    /// The image on the registry.
    pub fn layout(&self) -> &Layout {
        self.registry.layout()
    }

    /// Digest of what the tag points to.
    #[track_caller]
    pub fn top(&self) -> String {
        self.layout().digest("latest")
    }

    /// Digest of the manifest for this machine.
    #[track_caller]
    pub fn manifest(&self) -> String {
        self.layout().manifest("latest", &host())
    }

    /// A call of `edgepull VERB` on this daemon, as JSON.
    #[track_caller]
    pub fn verb(&self, verb: &str) -> Edgepull {
        self.verb_in(NAMESPACE, verb)
    }

    /// The same in another namespace.
    #[track_caller]
    pub fn verb_in(&self, namespace: &str, verb: &str) -> Edgepull {
        Edgepull::new([verb]).json().on(&self.daemon, namespace)
    }

    /// `edgepull pull REF` with more arguments.
    #[track_caller]
    pub fn pull_with(&self, args: &[&str]) -> Run {
        self.verb("pull").arg(&self.reference).args(args).run()
    }

    /// `edgepull pull REF`, which must succeed; its report.
    #[track_caller]
    pub fn pull(&self) -> Value {
        self.pull_with(&[]).exits(0).element()
    }

    /// Runs the image with `ctr` and runc: it must greet.
    #[track_caller]
    pub fn greets(&self) {
        let ran = self.daemon.run(NAMESPACE, &self.reference, &[]).ok();
        assert_eq!(ran.text(), greeting());
    }

    /// Digests that a pull for `platform` leaves in the content store, sorted.
    #[track_caller]
    pub fn wanted_blobs(&self, platform: &Platform) -> Vec<String> {
        let manifest = self.layout().manifest("latest", platform);
        let mut all = self.layout().parts(&manifest);
        all.extend([manifest, self.top()]);
        all.sort();
        all.dedup();
        all
    }
}

/// What the sample image prints on this machine.
pub fn greeting() -> String {
    format!("hello from {}\n", host().arch)
}

/// The labels that edgepull writes on the record of an image that it created, by key.
const OWN_LABELS: [&str; 2] = ["io.edgepull.managed", "io.edgepull.target"];

/// The labels of an image record without edgepull's own, for comparisons with other clients.
pub fn without_own_labels(labels: &[(String, String)]) -> Vec<(String, String)> {
    let mut others = labels.to_vec();
    others.retain(|(key, _)| !OWN_LABELS.contains(&key.as_str()));
    others
}

/// Makes one test for each containerd version out of functions that take a [`Version`].
#[macro_export]
macro_rules! on_each_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use $crate::containerd::Version;

            #[test]
            fn containerd_1_6() {
                super::$scenario(Version::V1_6);
            }

            #[test]
            fn containerd_1_7() {
                super::$scenario(Version::V1_7);
            }

            #[test]
            fn containerd_2() {
                super::$scenario(Version::V2);
            }
        }
    )+};
}
