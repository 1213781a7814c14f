//! The one place that reads the wall clock. Everything else is handed the time.

use std::time::SystemTime;

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The wall clock, in whole seconds. A clock set before 1970 reads as 1970.
pub(crate) fn unix_now() -> UnixTime {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    let now = SystemTime::now();
    UnixTime::since_unix_epoch(
        now.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// The wall clock in seconds since 1970, the unit of status and metrics.
pub(crate) fn unix_seconds() -> i64 {
    i64::try_from(unix_now().as_secs()).unwrap_or(i64::MAX)
}

/// Seconds since 1970 as RFC 3339 in UTC, for example `2026-02-03T04:05:06Z`. A moment that
/// RFC 3339 has no words for (before year 0 or after 9999) is given as the bare number.
pub(crate) fn rfc3339(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_in_utc_to_the_second() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_770_091_506), "2026-02-03T04:05:06Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn a_moment_outside_the_calendar_is_a_number() {
        assert_eq!(rfc3339(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn the_clock_and_its_seconds_agree() {
        let before = unix_seconds();
        let now = unix_now().as_secs() as i64;
        assert!((before..=before + 5).contains(&now));
    }
}
