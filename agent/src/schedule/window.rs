//! Windows of the day in which images are fetched, by the clock on the wall.
//!
//! A window is open whenever the local time reads a time within it. Where the clock is put
//! back over its end, it opens again; a time that the clock skips does not come that day.

use std::{fmt, str::FromStr, time::Duration};

use jiff::{ToSpan, Zoned, civil::Weekday, tz::AmbiguousOffset};

use super::Jitter;

const DAY: u16 = 24 * 60;
/// Every window comes within a week; the clock may skip it once, or the whole day, and then
/// it comes in the next.
const DAYS_AHEAD: i32 = 15;
const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// A part of some days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// From Monday; the days on which it begins.
    days: [bool; 7],
    /// Minutes of the day; an end before the start is on the next day.
    start: u16,
    end: u16,
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseWindowError {
    #[error("a window like `22:00-06:00` or `Mon-Fri 01:00-05:30` is wanted")]
    Form,
    #[error("the days are Mon, Tue, Wed, Thu, Fri, Sat and Sun; `{0}` is none")]
    Day(String),
    #[error("a time of the day is 00:00 to 23:59, and 24:00 at the end of a window")]
    Time,
    #[error("it ends when it begins; a whole day is 00:00-24:00")]
    Empty,
}

impl FromStr for Window {
    type Err = ParseWindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (days, times) = text.rsplit_once(char::is_whitespace).unwrap_or(("", text));
        let (start, end) = times.split_once('-').ok_or(ParseWindowError::Form)?;
        let (start, end) = (minute(start)?, minute(end)?);
        if start == DAY {
            return Err(ParseWindowError::Time);
        }
        if start == end {
            return Err(ParseWindowError::Empty);
        }
        let days = if days.is_empty() {
            [true; 7]
        } else {
            self::days(days)?
        };
        Ok(Self { days, start, end })
    }
}

fn minute(text: &str) -> Result<u16, ParseWindowError> {
    let (hours, minutes) = text.split_once(':').ok_or(ParseWindowError::Form)?;
    let number = |digits: &str| {
        let digits = Some(digits).filter(|digits| digits.len() == 2)?;
        let all = digits.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let hours = number(hours).ok_or(ParseWindowError::Form)?;
    let minutes = number(minutes).ok_or(ParseWindowError::Form)?;
    let minute = hours * 60 + minutes;
    if minutes > 59 || minute > DAY {
        return Err(ParseWindowError::Time);
    }
    Ok(minute)
}

/// `Sat,Sun`, `Mon-Fri`, `Fri-Mon`.
fn days(text: &str) -> Result<[bool; 7], ParseWindowError> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let mut at = first;
        days[at] = true;
        while at != last {
            at = (at + 1) % 7;
            days[at] = true;
        }
    }
    Ok(days)
}

fn day(text: &str) -> Result<usize, ParseWindowError> {
    let text = text.trim();
    NAMES
        .iter()
        .position(|name| name.eq_ignore_ascii_case(text))
        .ok_or_else(|| ParseWindowError::Day(crate::redact::printable(text, 40)))
}

impl Window {
    fn is_on(&self, day: Weekday) -> bool {
        let index = usize::try_from(day.to_monday_zero_offset()).unwrap_or_default();
        self.days.get(index).copied().unwrap_or_default()
    }

    fn length(&self) -> Duration {
        let minutes = if self.start < self.end {
            self.end - self.start
        } else {
            DAY - self.start + self.end
        };
        Duration::from_secs(60 * u64::from(minutes))
    }

    fn is_open(&self, now: &Zoned) -> bool {
        let minute = i32::from(now.hour()) * 60 + i32::from(now.minute());
        let (start, end) = (i32::from(self.start), i32::from(self.end));
        let today = self.is_on(now.weekday());
        if start < end {
            return today && (start..end).contains(&minute);
        }
        let yesterday = self.is_on(now.weekday().previous());
        today && minute >= start || yesterday && minute < end
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let on = NAMES.iter().zip(self.days).filter(|(_, on)| *on);
            let names: Vec<&str> = on.map(|(name, _)| *name).collect();
            write!(f, "{} ", names.join(","))?;
        }
        let (start, end) = (self.start, self.end);
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            start / 60,
            start % 60,
            end / 60,
            end % 60
        )
    }
}

/// All windows of a host; none at all is always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    windows: Vec<Window>,
    /// For this host a window opens so much later than the clock says.
    shift: Duration,
}

impl Windows {
    pub fn new(windows: Vec<Window>) -> Self {
        Self {
            windows,
            shift: Duration::ZERO,
        }
    }

    /// A fleet would begin all at once where they open: each host does so at its own moment
    /// in the first tenth of the shortest (at most half an hour, or `[schedule] jitter`), and
    /// never later than in the middle. Ends stay where they are.
    pub fn spread(self, jitter: &Jitter) -> Self {
        let shortest = self.windows.iter().map(Window::length).min();
        let shortest = shortest.unwrap_or_default();
        let bound = jitter.bound(shortest).min(shortest / 2);
        let shift = bound.mul_f64(jitter.fraction("windows open"));
        Self {
            shift: Duration::from_secs(shift.as_secs()),
            ..self
        }
    }

    /// Whether the clock reads a time within one.
    fn reads_open(&self, now: &Zoned) -> bool {
        self.windows.iter().any(|window| window.is_open(now))
    }

    /// Open now, and so long ago: where one follows another without a break, nothing opens.
    pub fn is_open(&self, now: &Zoned) -> bool {
        self.windows.is_empty()
            || self.reads_open(now) && self.reads_open(&now.saturating_sub(self.shift))
    }

    /// The first moment from `now` on at which one is open; `now` itself if one is. A day
    /// from now, to look again, if there is none within two weeks.
    pub fn opens_at(&self, now: &Zoned) -> Zoned {
        if self.is_open(now) {
            return now.clone();
        }
        let later = now.saturating_add(24.hours());
        // It may read open already, or have done so until a moment ago.
        let from = now.saturating_sub(self.shift);
        let found = self.starts(&from).into_iter().chain(changes(&from));
        found
            .flat_map(|at| [at.saturating_add(self.shift), at])
            .filter(|at| at > now && self.is_open(at))
            .min()
            .unwrap_or(later)
    }

    /// The moments at which a window begins; both, where the clock reads that time twice.
    fn starts(&self, now: &Zoned) -> Vec<Zoned> {
        let mut starts = Vec::new();
        for ahead in 0..DAYS_AHEAD {
            let date = now.date().saturating_add(ahead.days());
            for window in self
                .windows
                .iter()
                .filter(|window| window.is_on(date.weekday()))
            {
                let hour = i8::try_from(window.start / 60).unwrap_or_default();
                let minute = i8::try_from(window.start % 60).unwrap_or_default();
                let at = date.at(hour, minute, 0, 0);
                let read = now.time_zone().to_ambiguous_zoned(at);
                let moments = match read.offset() {
                    AmbiguousOffset::Fold { .. } => {
                        vec![read.clone().earlier(), read.later()]
                    }
                    // In a gap nothing begins; the end of the gap is a change of the clock.
                    AmbiguousOffset::Gap { .. } => Vec::new(),
                    AmbiguousOffset::Unambiguous { .. } => vec![read.compatible()],
                };
                starts.extend(moments.into_iter().flatten());
            }
            // Days come one after another, and so do the starts within them.
            let is_opening = |at: &Zoned| self.is_open(&at.saturating_add(self.shift));
            if starts.iter().any(|at| at > now && is_opening(at)) {
                break;
            }
        }
        starts
    }
}

/// The moments at which the clock is put forward or back.
fn changes(now: &Zoned) -> impl Iterator<Item = Zoned> {
    let until = now.timestamp().saturating_add((24 * DAYS_AHEAD).hours());
    now.time_zone()
        .following(now.timestamp())
        .map(|change| change.timestamp())
        .take_while(move |at| until.as_ref().is_ok_and(|until| at <= until))
        .map(|at| at.to_zoned(now.time_zone().clone()))
}

#[cfg(test)]
mod tests {
    use jiff::{Timestamp, tz::TimeZone};

    use super::*;

    /// Central Europe, without needing the system's database.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a time zone")
    }

    fn windows(texts: &[&str]) -> Windows {
        Windows::new(texts.iter().map(|text| text.parse().expect(text)).collect())
    }

    fn at(utc: &str) -> Zoned {
        utc.parse::<Timestamp>().expect("a time").to_zoned(berlin())
    }

    #[test]
    fn texts_and_what_they_mean() {
        use ParseWindowError as E;
        for (text, read) in [
            ("22:00-06:00", Ok("22:00-06:00")),
            (" 22:00-06:00 ", Ok("22:00-06:00")),
            ("Sat,Sun 00:00-24:00", Ok("Sat,Sun 00:00-24:00")),
            ("sat, SUN  00:00-24:00", Ok("Sat,Sun 00:00-24:00")),
            ("Mon-Wed 01:00-02:30", Ok("Mon,Tue,Wed 01:00-02:30")),
            ("Sun-Mon,Wed 01:00-02:30", Ok("Mon,Wed,Sun 01:00-02:30")),
            ("Mon-Sun 01:00-02:30", Ok("01:00-02:30")),
            ("", Err(E::Form)),
            ("22:00", Err(E::Form)),
            ("22-06", Err(E::Form)),
            ("22:00 - 06:00", Err(E::Form)),
            ("2:00-3:00", Err(E::Form)),
            ("+2:00-03:00", Err(E::Form)),
            ("22:00-06:00 Mon", Err(E::Form)),
            ("22:60-06:00", Err(E::Time)),
            ("22:00-24:01", Err(E::Time)),
            ("24:00-06:00", Err(E::Time)),
            ("06:00-06:00", Err(E::Empty)),
            ("Mo 22:00-06:00", Err(E::Day("Mo".to_owned()))),
            (", 22:00-06:00", Err(E::Day(String::new()))),
        ] {
            let shown = text.parse::<Window>().map(|window| window.to_string());
            assert_eq!(shown, read.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn open_and_closed_and_when_it_opens() {
        // Winter time is UTC+1. 2026-11-28 is a Saturday.
        for (texts, now, opens) in [
            (&[][..], "2026-11-28T12:00:00Z", "2026-11-28T12:00:00Z"),
            // Over midnight.
            (
                &["22:00-06:00"],
                "2026-11-28T12:00:00Z",
                "2026-11-28T21:00:00Z",
            ),
            (
                &["22:00-06:00"],
                "2026-11-28T23:30:00Z",
                "2026-11-28T23:30:00Z",
            ),
            (
                &["22:00-06:00"],
                "2026-11-28T04:59:59Z",
                "2026-11-28T04:59:59Z",
            ),
            (
                &["22:00-06:00"],
                "2026-11-28T05:00:00Z",
                "2026-11-28T21:00:00Z",
            ),
            // The night that begins on a Friday ends on a Saturday.
            (
                &["Fri 22:00-06:00"],
                "2026-11-28T04:00:00Z",
                "2026-11-28T04:00:00Z",
            ),
            (
                &["Fri 22:00-06:00"],
                "2026-11-28T21:30:00Z",
                "2026-12-04T21:00:00Z",
            ),
            (
                &["Sat,Sun 00:00-24:00"],
                "2026-11-29T22:59:59Z",
                "2026-11-29T22:59:59Z",
            ),
            (
                &["Sat,Sun 00:00-24:00"],
                "2026-11-29T23:00:00Z",
                "2026-12-04T23:00:00Z",
            ),
            // The first of several.
            (
                &["Mon 01:00-02:00", "Sun 13:00-14:00", "23:00-24:00"],
                "2026-11-28T23:10:00Z",
                "2026-11-29T12:00:00Z",
            ),
        ] {
            let windows = windows(texts);
            assert_eq!(windows.opens_at(&at(now)), at(opens), "{texts:?} {now}");
            assert_eq!(windows.is_open(&at(now)), now == opens, "{texts:?} {now}");
        }
    }

    #[test]
    fn the_clock_is_put_forward_and_back() {
        for (text, now, opens) in [
            // 2027-03-28, 02:00 becomes 03:00 at 01:00 UTC.
            (
                "01:30-03:30",
                "2027-03-28T01:00:00Z",
                "2027-03-28T01:00:00Z",
            ),
            (
                "02:30-04:00",
                "2027-03-28T00:30:00Z",
                "2027-03-28T01:00:00Z",
            ),
            // What is skipped does not come that day.
            (
                "02:15-02:45",
                "2027-03-28T00:30:00Z",
                "2027-03-29T00:15:00Z",
            ),
            (
                "Sun 02:15-02:45",
                "2027-03-28T00:30:00Z",
                "2027-04-04T00:15:00Z",
            ),
            (
                "06:00-07:00",
                "2027-03-28T00:30:00Z",
                "2027-03-28T04:00:00Z",
            ),
            // 2027-10-31, 03:00 becomes 02:00 at 01:00 UTC: 02:30 comes twice.
            (
                "02:30-02:45",
                "2027-10-31T00:00:00Z",
                "2027-10-31T00:30:00Z",
            ),
            (
                "02:30-02:45",
                "2027-10-31T00:50:00Z",
                "2027-10-31T01:30:00Z",
            ),
            (
                "01:00-02:30",
                "2027-10-31T00:40:00Z",
                "2027-10-31T01:00:00Z",
            ),
            (
                "22:00-06:00",
                "2027-10-31T04:59:00Z",
                "2027-10-31T04:59:00Z",
            ),
        ] {
            let windows = windows(&[text]);
            assert_eq!(windows.opens_at(&at(now)), at(opens), "{text} {now}");
        }
    }

    #[test]
    fn the_end_of_time_is_no_panic() {
        let windows = windows(&["Sat 01:00-02:00"]);
        for moment in [Timestamp::MAX, Timestamp::MIN] {
            let now = moment.to_zoned(TimeZone::UTC);
            assert!(windows.opens_at(&now) >= now);
        }
    }

    #[test]
    fn a_fleet_begins_one_after_another_and_each_host_at_its_own_moment() {
        let host = |number: u32, widest: Option<u64>| {
            let machine = crate::redact::Secret::new(format!("{number:032x}"));
            Jitter::new(machine, widest.map(Duration::from_secs))
        };
        let minute = |minutes: u64| Duration::from_secs(60 * minutes);
        for (texts, widest, bound) in [
            (&["01:00-02:00", "22:00-06:00"][..], None, minute(6)),
            (&["22:00-06:00"], None, minute(30)),
            (&["22:00-06:00"], Some(3 * 3600), minute(180)),
            (&["22:00-06:00"], Some(0), minute(0)),
            (&["01:00-02:00"], Some(3 * 3600), minute(30)),
        ] {
            let shifts: Vec<Duration> = (0..1000)
                .map(|number| windows(texts).spread(&host(number, widest)).shift)
                .collect();
            assert!(shifts.iter().all(|shift| *shift < bound || bound.is_zero()));
            let early = shifts.iter().filter(|shift| **shift < bound / 2).count();
            assert!(bound.is_zero() || (400..600).contains(&early), "{early}");
        }
        let none = Windows::default().spread(&host(1, None));
        assert!(none.is_open(&at("2026-11-28T12:00:00Z")));
    }

    #[test]
    fn a_host_opens_later_and_closes_with_the_others() {
        let shifted = |texts: &[&str]| Windows {
            shift: Duration::from_secs(600),
            ..windows(texts)
        };
        for (texts, now, opens) in [
            (
                &["22:00-06:00"][..],
                "2026-11-28T21:03:00Z",
                "2026-11-28T21:10:00Z",
            ),
            (
                &["22:00-06:00"],
                "2026-11-28T12:00:00Z",
                "2026-11-28T21:10:00Z",
            ),
            (
                &["22:00-06:00"],
                "2026-11-29T05:00:00Z",
                "2026-11-29T21:10:00Z",
            ),
            (
                &["22:00-06:00"],
                "2026-11-29T04:59:00Z",
                "2026-11-29T04:59:00Z",
            ),
            // Nothing opens at midnight.
            (
                &["Sat,Sun 00:00-24:00"],
                "2026-11-28T23:01:00Z",
                "2026-11-28T23:01:00Z",
            ),
            // It was open before the short break.
            (
                &["20:00-21:00", "21:05-23:00"],
                "2026-11-28T20:02:00Z",
                "2026-11-28T20:05:00Z",
            ),
        ] {
            let windows = shifted(texts);
            assert_eq!(windows.opens_at(&at(now)), at(opens), "{texts:?} {now}");
            assert_eq!(windows.is_open(&at(now)), now == opens, "{texts:?} {now}");
        }
    }

    proptest::proptest! {
        /// Between now and the opening it is closed at every minute.
        #[test]
        fn it_opens_at_the_first_moment(
            days in "(Mon|Tue|Sat|Sun|Fri-Mon|Mon-Fri)",
            start in 0_u16..1440,
            length in 1_u16..1440,
            minutes in 0_i64..527_040,
            part in 0_u16..=50,
        ) {
            let end = (start + length) % DAY;
            let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
            let text = format!("{days} {}-{}", clock(start), clock(end));
            let shift = u64::from(length) * u64::from(part) / 100;
            let windows = Windows {
                shift: Duration::from_secs(60 * shift),
                ..windows(&[&text])
            };
            let now = at("2027-01-01T00:00:00Z").saturating_add(minutes.minutes());
            let opens = windows.opens_at(&now);
            proptest::prop_assert!(windows.is_open(&opens));
            let mut probe = now;
            while probe < opens {
                proptest::prop_assert!(!windows.is_open(&probe), "{text} {probe} {opens}");
                probe = probe.saturating_add(1.minute());
            }
            proptest::prop_assert_eq!(probe, opens);
        }

        #[test]
        fn what_is_printed_reads_back(text in "((Mon|Tue-Thu|Sun),)?Sat [0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]") {
            if let Ok(window) = text.parse::<Window>() {
                proptest::prop_assert_eq!(window.to_string().parse(), Ok(window));
            }
        }

        #[test]
        fn any_text_is_a_window_or_refused(text in "[0-9:MonSatu, -]{0,20}|\\PC{0,20}") {
            drop(text.parse::<Window>());
        }
    }
}
