//! Programs that start, and wait for, the command after `--`.

/// By their names, wherever they are.
const INITS: [&str; 5] = [
    "tini",
    "tini-static",
    "dumb-init",
    "catatonit",
    "docker-init",
];
/// Their options that have a value in the next word.
const WITH_VALUE: [&str; 4] = ["-e", "-p", "-r", "--rewrite"];

/// The command after the `--` of an init.
pub fn started_by_init(words: &[String]) -> Option<&str> {
    let (first, rest) = words.split_first()?;
    let name = first.rsplit('/').next()?;
    if !INITS.contains(&name) {
        return None;
    }
    let mut rest = rest.iter().map(String::as_str);
    // A `--` behind the command is the command's own.
    while let Some(word) = rest.next() {
        match word {
            "--" => return rest.next(),
            _ if WITH_VALUE.contains(&word) => drop(rest.next()),
            _ if word.starts_with('-') => {}
            _ => return None,
        }
    }
    None
}
