//! What the body of a refusal says, made fit to print.

use crate::redact::printable;

/// How much of a registry's own text is shown.
pub(super) const MAX_SAID: usize = 300;

/// Whether it is HTML. Manifests and tokens are JSON, so a first `<` is enough.
pub(super) fn is_web_page(content_type: Option<&str>, bytes: &[u8]) -> bool {
    content_type.is_some_and(|text| {
        let text = text.trim_start();
        text.get(..9)
            .is_some_and(|start| start.eq_ignore_ascii_case("text/html"))
    }) || bytes.trim_ascii_start().first() == Some(&b'<')
}

/// The parts of such a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The registry's error code, e.g. `NAME_UNKNOWN`.
    pub(super) code: Option<String>,
    pub(super) text: Option<String>,
    /// The title, if it is a web page.
    pub(super) title: Option<String>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct RawErrors {
    errors: Option<Vec<RawError>>,
    // Token servers have forms of their own.
    message: Option<serde_json::Value>,
    details: Option<serde_json::Value>,
    error_description: Option<serde_json::Value>,
    error: Option<serde_json::Value>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct RawError {
    code: Option<serde_json::Value>,
    message: Option<serde_json::Value>,
}

impl Said {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let nonempty = |text: String| (!text.is_empty()).then_some(text);
        let text_of = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => nonempty(printable(&text, MAX_SAID)),
            _ => None,
        };
        if let Ok(raw) = serde_json::from_slice::<RawErrors>(bytes) {
            let first = raw.errors.and_then(|errors| errors.into_iter().next());
            let (code, message) = first.map_or((None, None), |first| {
                (
                    first.code.and_then(text_of),
                    first.message.and_then(text_of),
                )
            });
            let text = message.or_else(|| {
                [raw.message, raw.details, raw.error_description, raw.error]
                    .into_iter()
                    .flatten()
                    .find_map(text_of)
            });
            return Self {
                text: text.or_else(|| code.clone()),
                code,
                title: None,
            };
        }
        let text = String::from_utf8_lossy(bytes);
        if is_web_page(None, bytes) {
            return Self {
                title: title(&text).and_then(|title| nonempty(printable(title, 120))),
                ..Self::default()
            };
        }
        let line = text.lines().find(|line| !line.trim().is_empty());
        Self {
            text: line.and_then(|line| nonempty(printable(line.trim(), MAX_SAID))),
            ..Self::default()
        }
    }
}

/// The text between `<title>` and the next tag. ASCII case folding keeps the offsets.
fn title(page: &str) -> Option<&str> {
    let folded = page.to_ascii_lowercase();
    let open = folded.find("<title")?;
    let start = folded.get(open..)?.find('>')? + open + 1;
    let rest = page.get(start..)?;
    rest.split('<').next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_in_the_forms_of_registries_and_token_servers() {
        for (body, code, text, title) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"no","detail":{}},{"code":"B"}]}"#,
                Some("DENIED"),
                Some("no"),
                None,
            ),
            (r#"{"errors":[{"code":"X"}]}"#, Some("X"), Some("X"), None),
            (
                r#"{"details":"wrong password"}"#,
                None,
                Some("wrong password"),
                None,
            ),
            (
                r#"{"error":"invalid_grant"}"#,
                None,
                Some("invalid_grant"),
                None,
            ),
            (r#"{"errors":null}"#, None, None, None),
            ("\n  slow down\nplease", None, Some("slow down"), None),
            ("<html><title>Log in</title>", None, None, Some("Log in")),
            ("<title", None, None, None),
            ("<tItLe x=y>a", None, None, Some("a")),
            ("", None, None, None),
        ] {
            let said = Said::parse(body.as_bytes());
            assert_eq!(said.code.as_deref(), code, "{body}");
            assert_eq!(said.text.as_deref(), text, "{body}");
            assert_eq!(said.title.as_deref(), title, "{body}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_read_and_made_printable(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let said = Said::parse(&bytes);
            for text in [said.code, said.text, said.title].into_iter().flatten() {
                proptest::prop_assert!(!text.chars().any(char::is_control));
                proptest::prop_assert!(text.chars().count() <= MAX_SAID);
            }
        }

        #[test]
        fn likely_pages_too(text in "(<title|>|</title>|<|İ|K|a| |\n){0,20}") {
            drop(Said::parse(format!("<{text}").as_bytes()));
        }
    }
}
