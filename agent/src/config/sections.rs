//! The sections of `config.toml`, one function each.

use std::{path::PathBuf, time::Duration};

use super::{Config, floor};
use crate::{
    proof::{Emulation, Policy},
    registry::{Via, parse_rate},
    schedule::{ParseWindowError, Refresh, parse_span},
    table::{Fault, Node, Reader, Value, duration, shown},
};

/// More downloads at once only take memory and each other's time.
const MOST_DOWNLOADS: u64 = 64;
/// Containers in one shim.
const MOST_GROUPED: u64 = 1000;
/// Times below a second end transfers that are only slow.
const SHORTEST: Duration = Duration::from_secs(1);
/// Several a day, each day of the week.
const MOST_WINDOWS: usize = 64;

impl Config {
    pub(super) fn host(&mut self, reader: &Reader<'_>, table: &Node<'_, '_>) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            if name != "labels" {
                return Err(unknown(reader, &key, &span));
            }
            let labels = reader.table(&key, value)?;
            for (name, _, value) in labels.in_order() {
                let text = reader.string(&labels.name(name), value)?;
                self.labels.insert(name.to_owned(), text.to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn containerd(
        &mut self,
        reader: &Reader<'_>,
        table: &Node<'_, '_>,
    ) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            let text = || filled(reader, &key, value);
            match name {
                "address" => self.address = Some(text()?.into()),
                "namespace" => self.namespace = Some(text()?.to_owned()),
                "snapshotter" => self.snapshotter = Some(text()?.to_owned()),
                "hosts_dir" => self.hosts_dir = Some(text()?.into()),
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    pub(super) fn limits(
        &mut self,
        reader: &Reader<'_>,
        table: &Node<'_, '_>,
    ) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            match name {
                "max_concurrent_downloads" => {
                    let number = reader.integer(&key, value, 1..MOST_DOWNLOADS + 1)?;
                    self.max_concurrent_downloads = usize::try_from(number).ok();
                }
                "rate" => {
                    let rate = parse_rate(filled(reader, &key, value)?).map_err(|error| {
                        let why = error.causes().join(", ");
                        let what = format!("{}: {why}", error.message());
                        reader.fault(&key, &value.span(), what)
                    })?;
                    self.rate = Some(rate);
                }
                "disk_floor" => {
                    let floor = filled(reader, &key, value)?.parse();
                    let floor = floor.map_err(|why: floor::ParseDiskFloorError| {
                        reader.fault(&key, &value.span(), why.to_string())
                    })?;
                    self.disk_floor = Some(floor);
                }
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    pub(super) fn schedule(
        &mut self,
        reader: &Reader<'_>,
        table: &Node<'_, '_>,
    ) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            let fault = |why: String| reader.fault(&key, &value.span(), why);
            match name {
                "refresh" => self.refresh = Some(every(reader, &key, value)?),
                "prune" => self.prune = Some(every(reader, &key, value)?),
                "jitter" => {
                    let jitter = parse_span(reader.string(&key, value)?);
                    self.jitter = Some(jitter.map_err(|why| fault(why.to_string()))?);
                }
                "windows" => {
                    let texts = reader.strings(&key, value)?;
                    if texts.len() > MOST_WINDOWS {
                        return Err(fault(format!("more than {MOST_WINDOWS} windows")));
                    }
                    let windows = texts.into_iter().map(|text| {
                        text.parse().map_err(|why: ParseWindowError| {
                            fault(format!("`{}`: {why}", shown(text)))
                        })
                    });
                    self.windows = windows.collect::<Result<_, _>>()?;
                }
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    pub(super) fn policy(
        &mut self,
        reader: &Reader<'_>,
        table: &Node<'_, '_>,
    ) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            match name {
                "image" => {
                    self.policy = match reader.string(&key, value)? {
                        "off" => Policy::Off,
                        "elf" => Policy::Elf,
                        "strict" => Policy::Strict,
                        text => {
                            let known = "`off`, `elf` and `strict`";
                            return Err(none_of(reader, &key, value, text, known));
                        }
                    };
                }
                "emulation" => self.emulation = emulation(reader, &key, value)?,
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    pub(super) fn shim(&mut self, reader: &Reader<'_>, table: &Node<'_, '_>) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            match name {
                "emulation" => self.shim.emulation = Some(emulation(reader, &key, value)?),
                "group" => {
                    self.shim.by_host = match reader.string(&key, value)? {
                        "pod" => Some(false),
                        "host" => Some(true),
                        text => {
                            let known = "`pod` and `host`";
                            return Err(none_of(reader, &key, value, text, known));
                        }
                    };
                }
                "group_most" => {
                    let number = reader.integer(&key, value, 1..MOST_GROUPED + 1)?;
                    self.shim.group_most = Some(number);
                }
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    pub(super) fn metrics(
        &mut self,
        reader: &Reader<'_>,
        table: &Node<'_, '_>,
    ) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            match name {
                "listen" => {
                    let address = filled(reader, &key, value)?.parse();
                    let address = address.map_err(|_| {
                        let what = "an address and a port like `127.0.0.1:9464` or `[::1]:9464` are wanted";
                        reader.fault(&key, &value.span(), what)
                    })?;
                    self.metrics_listen = Some(address);
                }
                "textfile" => {
                    let path = PathBuf::from(filled(reader, &key, value)?);
                    // node_exporter takes no other, and a daemon has no directory of its own.
                    let is_prom = path.extension().is_some_and(|end| end == "prom");
                    if !path.is_absolute() || !is_prom {
                        let what = "a whole path that ends in `.prom` is wanted";
                        return Err(reader.fault(&key, &value.span(), what));
                    }
                    self.metrics_textfile = Some(path);
                }
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }

    pub(super) fn registry(
        &mut self,
        reader: &Reader<'_>,
        table: &Node<'_, '_>,
    ) -> Result<(), Fault> {
        for (name, span, value) in table.in_order() {
            let key = table.name(name);
            match name {
                "connect_timeout" => self.connect_timeout = Some(time(reader, &key, value)?),
                "read_timeout" => self.read_timeout = Some(time(reader, &key, value)?),
                "stall_timeout" => self.stall_timeout = Some(time(reader, &key, value)?),
                "proxy" => self.ways.default = Some(via(reader, &key, value)?),
                // A registry's name, which has settings of its own.
                host if matches!(value.get_ref(), toml::de::DeValue::Table(_)) => {
                    let own = reader.table(&key, value)?;
                    for (name, span, value) in own.in_order() {
                        let key = own.name(name);
                        if name != "proxy" {
                            return Err(unknown(reader, &key, &span));
                        }
                        let via = via(reader, &key, value)?;
                        self.ways.by_host.insert(host.to_ascii_lowercase(), via);
                    }
                }
                _ => return Err(unknown(reader, &key, &span)),
            }
        }
        Ok(())
    }
}

pub(super) fn unknown(reader: &Reader<'_>, key: &str, at: &std::ops::Range<usize>) -> Fault {
    reader.fault(key, at, "there is no such key")
}

fn emulation(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Emulation, Fault> {
    match reader.string(key, value)? {
        "never" => Ok(Emulation::Never),
        "allow" => Ok(Emulation::Allow),
        text => Err(none_of(reader, key, value, text, "`never` and `allow`")),
    }
}

fn none_of(reader: &Reader<'_>, key: &str, value: &Value<'_>, text: &str, known: &str) -> Fault {
    let what = format!("`{}` is none; there are {known}", shown(text));
    reader.fault(key, &value.span(), what)
}

fn filled<'v>(reader: &Reader<'_>, key: &str, value: &'v Value<'_>) -> Result<&'v str, Fault> {
    let text = reader.string(key, value)?;
    if text.trim().is_empty() || text.contains('\0') {
        return Err(reader.fault(key, &value.span(), "it is empty; leave the line out"));
    }
    Ok(text)
}

fn time(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Duration, Fault> {
    duration(reader.string(key, value)?)
        .filter(|time| *time >= SHORTEST)
        .ok_or_else(|| {
            reader.fault(
                key,
                &value.span(),
                "a time like `20s` or `1m30s` is wanted, a second at least",
            )
        })
}

/// The text may hold a password: no message has it.
fn via(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Via, Fault> {
    Via::parse(reader.string(key, value)?).ok_or_else(|| {
        reader.fault(
            key,
            &value.span(),
            "`direct` or the address of an HTTP proxy like `http://proxy.example:3128` is wanted",
        )
    })
}

fn every(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Refresh, Fault> {
    Refresh::parse(reader.string(key, value)?)
        .map_err(|why| reader.fault(key, &value.span(), format!("{why}, or `never`")))
}
