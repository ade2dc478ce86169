//! Values that may be printed, and values that may not.

use std::fmt;

/// A password, token or key. It has no `Display`, and its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The one way to the text; call it only where the bytes go on the wire.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Query keys that the registry protocol itself defines and that carry no secret.
/// Everything else is masked: storage URLs are signed in their query.
const PRINTABLE_QUERY: [&str; 8] = [
    "ns", "n", "last", "scope", "service", "digest", "mount", "from",
];

/// A URL as it may appear in logs and errors: no user info, and only those query
/// values that the protocol defines.
pub fn url(url: &reqwest::Url) -> String {
    let mut shown = url.clone();
    // Failing to clear them means there is no authority part, hence nothing to hide.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_fragment(None);
    if url.query().is_some() {
        shown.set_query(None);
        let pairs: Vec<String> = url
            .query_pairs()
            .map(|(key, value)| {
                if PRINTABLE_QUERY.contains(&key.as_ref()) {
                    format!("{key}={value}")
                } else {
                    format!("{key}=…")
                }
            })
            .collect();
        return format!("{shown}?{}", pairs.join("&"));
    }
    shown.to_string()
}

/// Foreign text for a terminal: no control characters, none that reorder or hide
/// what follows, and not too long.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let hidden = |c: char| matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}');
    text.chars()
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .filter(|c| !c.is_control() && !hidden(*c))
        .take(max)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_queries_and_user_info_are_masked() {
        let parsed = "https://me:pw@s3.example/b?X-Amz-Signature=abc&ns=docker.io"
            .parse()
            .expect("a URL");
        assert_eq!(
            url(&parsed),
            "https://s3.example/b?X-Amz-Signature=…&ns=docker.io"
        );
    }

    #[test]
    fn a_secret_has_no_text_in_debug() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
