//! Status codes, rate limits and bursts.

use std::sync::Arc;

use edgepull_tests::faulty::{Action, Faulty, Kind, Rule};

use super::row::{Left, Row, Stage, faulty, holds, lone, row};

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn limited(headers: &[(&str, &str)], body: &str) -> Action {
    let headers = headers.iter().map(|(n, v)| header(n, v)).collect();
    Action::Answer(429, headers, body.as_bytes().to_vec())
}

const TOO_MANY: &str =
    "{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"pull rate limit reached\"}]}";

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = limits();
    rows.extend(bursts());
    rows.extend(others());
    rows
}

/// Docker Hub's, for an anonymous address.
fn quota(remaining: &str) -> Vec<(String, String)> {
    vec![
        header("ratelimit-limit", "100;w=21600"),
        header("ratelimit-remaining", &format!("{remaining};w=21600")),
        header("docker-ratelimit-source", "192.0.2.7"),
    ]
}

fn limits() -> Vec<Row> {
    vec![
        faulty("429 with seconds", "faults: 429 with seconds", |_| {
            vec![Rule::on(Kind::Tag, limited(&[("Retry-After", "1")], TOO_MANY)).times(1)]
        })
        .asks(2, 1, 4, 0)
        .check(|seen, _| waited(seen, 1000)),
        faulty("429 with a date", "faults: 429 with date", |_| {
            // The answer's own date counts, not the clock of the device.
            let dates = [
                ("Date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("Retry-After", "Sun, 06 Nov 1994 08:49:38 GMT"),
            ];
            vec![Rule::on(Kind::Tag, limited(&dates, TOO_MANY)).times(1)]
        })
        .asks(2, 1, 4, 0)
        .check(|seen, _| waited(seen, 1000)),
        faulty("429 with none", "faults: 429 with none", |_| {
            vec![Rule::on(Kind::Tag, limited(&[], TOO_MANY)).times(1)]
        })
        .asks(2, 1, 4, 0),
        faulty(
            "429 for hours",
            "public registries: Docker Hub: quota",
            |_| {
                vec![Rule::on(
                    Kind::Tag,
                    limited(&[("Retry-After", "21600")], TOO_MANY),
                )]
            },
        )
        .fails("rate_limited")
        .asks(1, 0, 0, 0)
        .says(&["21600", "pull rate limit reached"])
        .heals(),
        faulty("429 without end", "status codes: 429", |_| {
            vec![Rule::on(Kind::Tag, limited(&[], TOO_MANY))]
        })
        .fails("rate_limited")
        .asks_within([3..=3, 0..=0, 0..=0, 0..=0]),
        faulty(
            "429 in HTML",
            "public registries: Docker Hub: text or HTML with 429",
            |_| {
                let page = "<html><head><title>Slow down</title></head></html>";
                vec![Rule::on(
                    Kind::Tag,
                    limited(&[("Content-Type", "text/html")], page),
                )]
            },
        )
        .fails("rate_limited")
        .asks_within([3..=3, 0..=0, 0..=0, 0..=0])
        .says(&["Slow down"]),
        faulty(
            "429 on a layer",
            "public registries: ECR public: per second",
            |w| {
                let busy = limited(&[("Retry-After", "1")], "");
                vec![Rule::on(Kind::Blob, busy).what(&w.layer()).times(1)]
            },
        )
        .asks(1, 1, 5, 0),
        lone(
            "429 on a layer, for hours",
            "public registries: Docker Hub: quota",
            |w| {
                let busy = limited(&[("Retry-After", "7200")], "");
                vec![Rule::on(Kind::Blob, busy).what(&w.layer())]
            },
        )
        .fails("rate_limited")
        .left(Left::Partial)
        .asks(1, 1, 2, 0)
        .heals(),
        faulty("408 and 425", "status codes: 408, 425, 429", |_| {
            vec![
                Rule::on(Kind::Tag, Action::status(408)).times(1),
                Rule::on(Kind::Manifest, Action::status(425)).times(1),
            ]
        })
        .asks(2, 2, 4, 0),
        faulty(
            "the quota's headers",
            "public registries: Docker Hub: ratelimit-limit",
            |_| vec![Rule::on(Kind::Tag, Action::Headers(quota("76")))],
        ),
        faulty(
            "odd quota headers",
            "public registries: Docker Hub: ratelimit-limit",
            |_| {
                let odd = vec![
                    header("ratelimit-limit", "many;w=-1"),
                    header("ratelimit-remaining", "18446744073709551616"),
                    header("ratelimit-reset", "soon"),
                    header("x-ratelimit-reset", "1e99"),
                ];
                vec![Rule::always(Action::Headers(odd))]
            },
        ),
        faulty(
            "429 that names the quota",
            "public registries: Docker Hub: ratelimit-remaining",
            |_| {
                let mut headers = quota("0");
                headers.push(header("Retry-After", "3600"));
                let answer = Action::Answer(429, headers, TOO_MANY.into());
                vec![Rule::on(Kind::Tag, answer)]
            },
        )
        .fails("rate_limited")
        .asks(1, 0, 0, 0)
        .says(&["100", "3600"]),
        row("a rate cap", "a rate cap", |w| {
            Stage::of(Faulty::start(Arc::clone(&w.hello), [])).args(["--limit-rate", "500k"])
        })
        // 1.2 MB at 0.5 MB/s; a burst of one second's worth may be free.
        .check(|seen, _| waited(seen, 1000)),
    ]
}

fn waited(seen: &super::row::Seen, ms: u128) -> Result<(), String> {
    let took = seen.run.output.took.as_millis();
    holds(took >= ms, &format!("it waited {took} ms only"))
}

fn bursts() -> Vec<Row> {
    vec![
        faulty(
            "500, 502, 503 and 504, one each",
            "public registries: Quay: bursts on each step",
            |w| {
                vec![
                    Rule::on(Kind::Tag, Action::status(500)).times(1),
                    Rule::on(Kind::Manifest, Action::status(502)).times(1),
                    Rule::on(Kind::Blob, Action::status(503))
                        .what(&w.layer())
                        .times(1),
                    Rule::on(Kind::Blob, Action::status(504)).times(1),
                ]
            },
        )
        .asks(2, 2, 6, 0),
        faulty("502 twice on every step", "public registries: Quay", |_| {
            vec![
                Rule::on(Kind::Tag, Action::status(502)).times(2),
                Rule::on(Kind::Manifest, Action::status(502)).times(2),
            ]
        })
        .asks(3, 3, 4, 0),
        faulty("520, as CDNs say", "status codes: 520 to 530", |_| {
            vec![Rule::on(Kind::Tag, Action::status(520)).times(1)]
        })
        .asks(2, 1, 4, 0),
        faulty("503 without end", "faults: 503 burst of 90 s", |_| {
            vec![Rule::on(Kind::Tag, Action::status(503))]
        })
        .fails("unavailable")
        .asks_within([3..=3, 0..=0, 0..=0, 0..=0])
        .heals(),
        faulty(
            "503 for every blob",
            "status codes: 503; one budget",
            |_| vec![Rule::on(Kind::Blob, Action::status(503))],
        )
        .fails("unavailable")
        .asks_within([1..=1, 1..=1, 2..=5, 0..=0])
        .heals(),
        lone("503 for one layer", "status codes: 503; one budget", |w| {
            vec![Rule::on(Kind::Blob, Action::status(503)).what(&w.layer())]
        })
        .fails("unavailable")
        .left(Left::Partial)
        .asks_within([1..=1, 1..=1, 4..=6, 0..=0])
        .heals(),
        faulty("503 with Retry-After", "status codes: 503", |_| {
            let wait = vec![header("Retry-After", "1")];
            vec![Rule::on(Kind::Tag, Action::Answer(503, wait, Vec::new())).times(1)]
        })
        .asks(2, 1, 4, 0)
        .check(|seen, _| waited(seen, 1000)),
    ]
}

fn others() -> Vec<Row> {
    let on_tag =
        |code: u16| move |_: &super::row::World| vec![Rule::on(Kind::Tag, Action::status(code))];
    vec![
        faulty("400 from the registry", "status codes: 400", on_tag(400))
            .fails("unavailable")
            .asks(1, 0, 0, 0),
        faulty(
            "407 from a proxy on the way",
            "status codes: 407",
            on_tag(407),
        )
        .fails("unavailable")
        .asks(1, 0, 0, 0)
        .says(&["proxy"]),
        faulty("410", "status codes: 404", on_tag(410))
            .fails("not_found")
            .asks(1, 0, 0, 0),
        faulty("451", "status codes: 451", on_tag(451))
            .fails("unavailable")
            .asks(1, 0, 0, 0),
        faulty("501", "status codes", on_tag(501))
            .fails("unavailable")
            .asks(1, 0, 0, 0),
        faulty(
            "an answer that is no HTTP",
            "TLS and proxies: plain HTTP on 443",
            |_| {
                vec![Rule::on(
                    Kind::Tag,
                    Action::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
                )]
            },
        )
        .fails("unavailable")
        .asks_within([1..=3, 0..=0, 0..=0, 0..=0]),
        faulty("204 without content", "status codes: 200", |_| {
            vec![Rule::on(
                Kind::Tag,
                Action::Answer(204, Vec::new(), Vec::new()),
            )]
        })
        .fails("unavailable")
        .asks(1, 0, 0, 0),
        faulty("an error text full of control characters", "basics", |_| {
            let body = "{\"errors\":[{\"code\":\"X\",\"message\":\"\\u001b[31mred\\u0007\"}]}";
            vec![Rule::on(
                Kind::Tag,
                Action::Answer(403, Vec::new(), body.into()),
            )]
        })
        .fails("unauthorized")
        .asks(1, 0, 0, 0)
        .check(|seen, _| {
            let told = &seen.run.output.stderr;
            let last = told
                .lines()
                .filter(|l| l.starts_with("error") || l.starts_with("caused"));
            holds(
                !last.into_iter().any(|l| l.contains('\u{1b}')),
                "an escape reached the terminal",
            )
        }),
    ]
}
