//! A row of the table: what is set up, what is called, what must come of it.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use edgepull_tests::containerd::{Containerd, Setup, Version};
use edgepull_tests::edgepull::Run;
use edgepull_tests::fault_proxy::FaultProxy;
use edgepull_tests::faulty::{Auth, Faulty, Request, Rule};
use edgepull_tests::image::{self, Layout, host};
use edgepull_tests::pki::Authority;
use edgepull_tests::registry::Registry;
use edgepull_tests::token_server::TokenServer;
use serde_json::Value;

/// The user of every registry that wants one.
pub(crate) const USER: &str = "edge";
/// No output of the program may hold it.
pub(crate) const PASSWORD: &str = "password-of-the-lab";

/// What all rows share.
pub(crate) struct World {
    pub(crate) hello: Arc<Layout>,
    /// One layer only.
    pub(crate) lone: Arc<Layout>,
    pub(crate) daemon: Containerd,
    registry: OnceLock<Registry>,
    authority: OnceLock<Authority>,
}

impl World {
    pub(crate) fn new() -> Self {
        // Otherwise a blob of one row would be there for all the others.
        let isolated =
            "[plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n";
        Self {
            hello: Arc::new(image::hello()),
            lone: Arc::new(image::big(0, 0)),
            daemon: Setup::new(Version::V1_7).config(isolated).start(),
            registry: OnceLock::new(),
            authority: OnceLock::new(),
        }
    }

    /// The real registry, with the image `lab/app:latest` in it.
    pub(crate) fn registry(&self) -> &Registry {
        self.registry.get_or_init(|| {
            let registry = Registry::start();
            self.hello.push(&registry, "latest", "lab/app", "latest");
            registry
        })
    }

    /// An authority that nobody trusts by default.
    pub(crate) fn authority(&self) -> &Authority {
        self.authority.get_or_init(Authority::new)
    }

    pub(crate) fn manifest(&self) -> String {
        self.hello.manifest("latest", &host())
    }

    /// The layer with busybox: the only one that is worth cutting.
    pub(crate) fn layer(&self) -> String {
        self.hello.parts(&self.manifest()).remove(2)
    }

    pub(crate) fn layer_size(&self) -> u64 {
        self.size(&self.layer())
    }

    pub(crate) fn size(&self, digest: &str) -> u64 {
        size_in(&self.hello, digest)
    }

    /// The bytes of all blobs that a pull needs.
    pub(crate) fn whole(&self) -> u64 {
        let parts = self.hello.parts(&self.manifest());
        parts.iter().map(|digest| self.size(digest)).sum()
    }
}

pub(crate) fn size_in(layout: &Layout, digest: &str) -> u64 {
    std::fs::metadata(layout.blob_path(digest)).map_or(0, |meta| meta.len())
}

/// A server that writes down what it is asked.
pub(crate) trait Watched {
    fn requests(&self) -> Vec<Request>;
    /// From now on it behaves.
    fn heal(&self) {}
    /// From now on it misbehaves so, and what it was asked before does not count.
    fn turn(&self, _rules: Vec<Rule>) {}
}

impl Watched for Faulty {
    fn requests(&self) -> Vec<Request> {
        Faulty::requests(self)
    }

    fn heal(&self) {
        self.script([]);
    }

    fn turn(&self, rules: Vec<Rule>) {
        self.forget();
        self.script(rules);
    }
}

impl Watched for FaultProxy {
    fn requests(&self) -> Vec<Request> {
        FaultProxy::requests(self)
    }

    fn heal(&self) {
        self.set(edgepull_tests::fault_proxy::Fault::Pass);
    }
}

impl<W: Watched> Watched for std::rc::Rc<W> {
    fn requests(&self) -> Vec<Request> {
        W::requests(self)
    }

    fn heal(&self) {
        W::heal(self);
    }

    fn turn(&self, rules: Vec<Rule>) {
        W::turn(self, rules);
    }
}

impl Watched for Registry {
    fn requests(&self) -> Vec<Request> {
        Registry::requests(self)
    }
}

impl Watched for TokenServer {
    fn requests(&self) -> Vec<Request> {
        TokenServer::requests(self)
    }
}

/// Where the image goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Containerd,
    /// `--store oci:DIR`.
    Layout,
}

/// What a row has set up. Dropped after the row.
pub(crate) struct Stage {
    pub(crate) reference: String,
    pub(crate) layout: Arc<Layout>,
    pub(crate) watched: Vec<Box<dyn Watched>>,
    pub(crate) kept: Vec<Box<dyn std::any::Any>>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(&'static str, OsString)>,
    /// Files in the call's home; an executable one if its name says `docker-credential-`. In these
    /// and in `args`, `{home}` stands for it.
    pub(crate) files: Vec<(String, String)>,
    pub(crate) netns: Option<String>,
    /// Runs while the pull does.
    pub(crate) during: Option<Box<dyn FnOnce()>>,
    /// What its servers must have seen in the end.
    pub(crate) after: Option<Box<dyn FnOnce() -> Result<(), String>>>,
}

impl Stage {
    /// One server that serves `layout`, asked for `lab/app:latest`.
    pub(crate) fn of(server: Faulty) -> Self {
        let layout = Arc::clone(server.layout());
        let host = server.host().to_owned();
        Self::at(&host, &layout).watch(server)
    }

    /// `lab/app:latest` at a host; servers follow.
    pub(crate) fn at(host: &str, layout: &Arc<Layout>) -> Self {
        Self {
            reference: format!("{host}/lab/app:latest"),
            layout: Arc::clone(layout),
            watched: Vec::new(),
            kept: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            files: Vec::new(),
            netns: None,
            during: None,
            after: None,
        }
    }

    /// Its requests count, too.
    pub(crate) fn watch(mut self, server: impl Watched + 'static) -> Self {
        self.watched.push(Box::new(server));
        self
    }

    /// It lives as long as the row.
    pub(crate) fn keep(mut self, thing: impl std::any::Any) -> Self {
        self.kept.push(Box::new(thing));
        self
    }

    pub(crate) fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn file(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.files.push((name.into(), text.into()));
        self
    }

    /// A `hosts.toml` for the reference's host (or `_default`).
    pub(crate) fn hosts(self, directory: &str, toml: impl Into<String>) -> Self {
        self.file(format!("certs.d/{directory}/hosts.toml"), toml)
            .args(["--hosts-dir", "{home}/certs.d"])
    }

    /// `--creds` with [`USER`] and [`PASSWORD`].
    pub(crate) fn creds(self) -> Self {
        self.args(["--creds".to_owned(), format!("{USER}:{PASSWORD}")])
    }

    pub(crate) fn netns(mut self, namespace: &str) -> Self {
        self.netns = Some(namespace.to_owned());
        self
    }

    pub(crate) fn during(mut self, act: impl FnOnce() + 'static) -> Self {
        self.during = Some(Box::new(act));
        self
    }

    pub(crate) fn after(mut self, check: impl FnOnce() -> Result<(), String> + 'static) -> Self {
        self.after = Some(Box::new(check));
        self
    }

    /// All requests to all servers, each server's in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.watched.iter().flat_map(|s| s.requests()).collect()
    }
}

/// What must be in the store afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// The image, whole, under its name, and nothing half-done.
    Image,
    /// Nothing.
    Nothing,
    /// No name; blobs that are whole, none begun.
    Blobs,
    /// No name; at least one blob begun, for the next try.
    Partial,
    /// One of the last three, by chance.
    Rest,
}

/// Counts of requests: by tag, of a manifest by digest, of a blob, of a token.
#[derive(Debug, Clone)]
pub(crate) struct Asks(pub(crate) [RangeInclusive<usize>; 4]);

#[derive(Debug, Clone)]
pub(crate) struct Expect {
    pub(crate) code: i32,
    pub(crate) kind: &'static str,
    pub(crate) asks: Asks,
    pub(crate) twice: u64,
    pub(crate) left: Left,
}

/// What a row saw.
pub(crate) struct Seen {
    pub(crate) reference: String,
    pub(crate) run: Run,
    pub(crate) requests: Vec<Request>,
    /// The one element of the report, or nothing.
    pub(crate) report: Value,
    /// Its error, or the fatal one, or null.
    pub(crate) error: Value,
}

impl Seen {
    /// Everything that the error says to a human.
    pub(crate) fn says(&self, words: &[&str]) -> Result<(), String> {
        let said = format!("{}\n{}", self.error, self.run.output.stderr);
        match words.iter().find(|word| !said.contains(**word)) {
            None => Ok(()),
            Some(word) => Err(format!("the error does not say {word:?}")),
        }
    }

    pub(crate) fn warns(&self, word: &str) -> Result<(), String> {
        let warnings = self.report["warnings"].to_string();
        holds(
            warnings.contains(word),
            &format!("no warning says {word:?}: {warnings}"),
        )
    }
}

pub(crate) fn holds(condition: bool, otherwise: &str) -> Result<(), String> {
    condition.then_some(()).ok_or_else(|| otherwise.to_owned())
}

type Script = Box<dyn Fn(&World) -> Vec<Rule> + Send + Sync>;
type Check = Box<dyn Fn(&Seen, &World) -> Result<(), String> + Send + Sync>;

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    pub(crate) stage: Box<dyn Fn(&World) -> Stage + Send + Sync>,
    pub(crate) expect: Expect,
    pub(crate) store: Store,
    pub(crate) heals: bool,
    /// The image is there already; then the servers turn bad.
    pub(crate) again: Option<Script>,
    /// The first call is killed when so many bytes of blobs were sent; the second one counts, and
    /// so do the requests of both.
    pub(crate) killed_at: Option<u64>,
    /// Takes long by its nature: begun first.
    pub(crate) slow: bool,
    pub(crate) checks: Vec<Check>,
}

/// A row whose servers are set up by hand. `source`: where this is met, and what is expected.
pub(crate) fn row(
    name: &'static str,
    source: &'static str,
    stage: impl Fn(&World) -> Stage + Send + Sync + 'static,
) -> Row {
    Row {
        name,
        source,
        stage: Box::new(stage),
        expect: Expect {
            code: 0,
            kind: "",
            asks: Asks(BASE.map(|n| n..=n)),
            twice: 0,
            left: Left::Image,
        },
        store: Store::Containerd,
        heals: false,
        again: None,
        killed_at: None,
        slow: false,
        checks: Vec::new(),
    }
}

/// An untroubled pull: the tag, the manifest, config and three layers.
pub(crate) const BASE: [usize; 4] = [1, 1, 4, 0];

/// A row of one faulty registry that serves the usual image to anybody.
pub(crate) fn faulty(
    name: &'static str,
    source: &'static str,
    rules: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
) -> Row {
    row(name, source, move |w| {
        Stage::of(Faulty::start(Arc::clone(&w.hello), rules(w)))
    })
}

/// The same with an image of one layer, [`World::layer`]: where that fails for good, no other one
/// is on its way, so that the counts and what is left are not a matter of luck.
pub(crate) fn lone(
    name: &'static str,
    source: &'static str,
    rules: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
) -> Row {
    row(name, source, move |w| {
        Stage::of(Faulty::start(Arc::clone(&w.lone), rules(w)))
    })
    .asks(1, 1, 2, 0)
}

/// A row of one registry that turns faulty when the image is there: the second pull counts, which
/// asks by HEAD whether the tag has moved.
pub(crate) fn again(
    name: &'static str,
    source: &'static str,
    rules: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
) -> Row {
    Row {
        again: Some(Box::new(rules)),
        ..faulty(name, source, |_| Vec::new()).asks(1, 0, 0, 0)
    }
}

/// A row of one faulty registry with authentication; the call has the user's password.
pub(crate) fn with_login(
    name: &'static str,
    source: &'static str,
    auth: impl Fn() -> Auth + Send + Sync + 'static,
    rules: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
) -> Row {
    row(name, source, move |w| {
        Stage::of(Faulty::start_with(Arc::clone(&w.hello), auth(), rules(w))).creds()
    })
}

impl Row {
    pub(crate) fn fails(mut self, kind: &'static str) -> Self {
        let codes = [
            ("internal", 1),
            ("config", 2),
            ("platform_missing", 3),
            ("unauthorized", 20),
            ("not_found", 21),
            ("rate_limited", 22),
            ("unavailable", 23),
            ("invalid_content", 24),
            ("unsupported", 25),
            ("timeout", 124),
        ];
        let code = codes.iter().find(|(name, _)| *name == kind);
        self.expect.code = code.unwrap_or_else(|| panic!("no kind {kind}")).1;
        self.expect.kind = kind;
        self.expect.left = Left::Nothing;
        self
    }

    /// Exactly so many requests by tag, of manifests, of blobs, of tokens.
    pub(crate) fn asks(mut self, tag: usize, manifest: usize, blob: usize, token: usize) -> Self {
        self.expect.asks = Asks([tag, manifest, blob, token].map(|n| n..=n));
        self
    }

    pub(crate) fn asks_within(mut self, ranges: [RangeInclusive<usize>; 4]) -> Self {
        self.expect.asks = Asks(ranges);
        self
    }

    /// So many bytes of blobs may come twice.
    pub(crate) fn twice(mut self, bytes: u64) -> Self {
        self.expect.twice = bytes;
        self
    }

    pub(crate) fn left(mut self, left: Left) -> Self {
        self.expect.left = left;
        self
    }

    pub(crate) fn in_layout(mut self) -> Self {
        self.store = Store::Layout;
        self
    }

    /// Once the servers behave, the next call completes the image.
    pub(crate) fn heals(mut self) -> Self {
        self.heals = true;
        self
    }

    pub(crate) fn killed_at(mut self, bytes: u64) -> Self {
        self.killed_at = Some(bytes);
        self
    }

    pub(crate) fn slow(mut self) -> Self {
        self.slow = true;
        self
    }

    pub(crate) fn check(
        mut self,
        check: impl Fn(&Seen, &World) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push(Box::new(check));
        self
    }

    /// The error says all of these.
    pub(crate) fn says(self, words: &'static [&'static str]) -> Self {
        self.check(move |seen, _| seen.says(words))
    }
}
