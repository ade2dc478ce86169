//! `WWW-Authenticate` (RFC 9110, 11.6.1), read leniently: what cannot be understood
//! is skipped, never guessed.

/// More challenges than any registry sends.
const MAX_CHALLENGES: usize = 16;
/// Longer values than any registry sends; scopes name repositories of up to 255.
const MAX_VALUE: usize = 2048;

/// One way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// Where to get a token, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Bearer {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

/// The challenges of all header lines that are understood, best first: Bearer before
/// Basic, else in the order they came.
pub(super) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for line in lines {
        parse_line(line, &mut found);
    }
    found.sort_by_key(|challenge| match challenge {
        Challenge::Bearer(_) => 0,
        Challenge::Basic => 1,
    });
    found
}

fn parse_line(line: &str, found: &mut Vec<Challenge>) {
    let mut rest = Cursor(line);
    let mut current: Option<Open> = None;
    loop {
        rest.skip(|c| c == ' ' || c == '\t' || c == ',');
        let word = rest.take(is_token);
        if word.is_empty() {
            // Not the start of anything: a stray character, or the end.
            if rest.next().is_none() {
                break;
            }
            continue;
        }
        rest.skip(|c| c == ' ' || c == '\t');
        if rest.eat('=') {
            rest.skip(|c| c == ' ' || c == '\t');
            let value = rest.value();
            if let Some(open) = &mut current {
                open.set(word, value);
            }
        } else {
            close(current.replace(Open::new(word)), found);
        }
    }
    close(current, found);
}

/// A challenge whose parameters are still being read.
enum Open {
    Basic,
    Bearer(Bearer),
    Other,
}

impl Open {
    fn new(scheme: &str) -> Self {
        if scheme.eq_ignore_ascii_case("bearer") {
            Self::Bearer(Bearer::default())
        } else if scheme.eq_ignore_ascii_case("basic") {
            Self::Basic
        } else {
            Self::Other
        }
    }

    fn set(&mut self, name: &str, value: String) {
        let Self::Bearer(bearer) = self else {
            return;
        };
        if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
            return;
        }
        if name.eq_ignore_ascii_case("realm") {
            bearer.realm = value;
        } else if name.eq_ignore_ascii_case("service") {
            bearer.service = Some(value);
        } else if name.eq_ignore_ascii_case("scope") {
            bearer.scope = Some(value);
        }
    }
}

fn close(open: Option<Open>, found: &mut Vec<Challenge>) {
    if found.len() >= MAX_CHALLENGES {
        return;
    }
    match open {
        Some(Open::Basic) => found.push(Challenge::Basic),
        Some(Open::Bearer(bearer)) if !bearer.realm.is_empty() => {
            found.push(Challenge::Bearer(bearer));
        }
        Some(Open::Bearer(_) | Open::Other) | None => {}
    }
}

/// `token` of RFC 9110, 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// The part of a header line that is not read yet.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.0.chars();
        let next = chars.next();
        self.0 = chars.as_str();
        next
    }

    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(what);
    }

    fn take(&mut self, what: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !what(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.0.strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// A quoted string or a word. Some registries leave the quotes out, so a word
    /// may be anything up to a comma or a blank.
    fn value(&mut self) -> String {
        if !self.eat('"') {
            return self.take(|c| c != ',' && c != ' ' && c != '\t').to_owned();
        }
        let mut value = String::new();
        while let Some(c) = self.next() {
            match c {
                '"' => break,
                '\\' => value.extend(self.next()),
                c => value.push(c),
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn the_forms_in_the_wild_are_read() {
        for (line, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/nginx:pull"),
                )],
            ),
            (r#"Basic realm="Sonatype Nexus""#, vec![Challenge::Basic]),
            (
                r#"BEARER Realm = "https://a/t" , error="invalid_token""#,
                vec![bearer("https://a/t", None, None)],
            ),
            (
                "Bearer realm=https://a/t,service=x",
                vec![bearer("https://a/t", Some("x"), None)],
            ),
            (
                r#"Basic realm="a", Bearer realm="https://a/t""#,
                vec![bearer("https://a/t", None, None), Challenge::Basic],
            ),
            (
                r#"Negotiate abc==, Basic realm="a\"b,Bearer""#,
                vec![Challenge::Basic],
            ),
            ("Basic", vec![Challenge::Basic]),
            ("Bearer", vec![]),
            ("Digest realm=\"x\"", vec![]),
            ("", vec![]),
            (
                r#"Bearer realm="https://a/t"#,
                vec![bearer("https://a/t", None, None)],
            ),
        ] {
            assert_eq!(parse([line]), expected, "{line}");
        }
    }

    #[test]
    fn several_lines_are_one_offer_and_bounded() {
        let many = vec!["Basic realm=x"; 100];
        assert_eq!(parse(many).len(), MAX_CHALLENGES);
        let long = format!("Bearer realm=\"https://{}\"", "a".repeat(MAX_VALUE));
        assert_eq!(parse([long.as_str()]), []);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC{0,200}") {
            drop(parse([text.as_str()]));
        }

        #[test]
        fn likely_texts_too(text in "(Bearer|Basic|realm|scope|=|,| |\"|\\\\|https://a){0,30}") {
            proptest::prop_assert!(parse([text.as_str()]).len() <= MAX_CHALLENGES);
        }

        #[test]
        fn quoted_values_survive(realm in "[ -~]{1,60}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!("Bearer realm=\"{quoted}\"");
            proptest::prop_assert_eq!(parse([line.as_str()]), vec![bearer(&realm, None, None)]);
        }
    }
}
