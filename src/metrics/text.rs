//! Names, labels and units of the metrics, and their two text formats.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{BOUNDS, Histogram, Inner, MirroredService, ServiceMetrics, lock};
use crate::config::ServiceName;

impl Collector for Inner {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_process(&mut encoder)?;
        self.encode_memory(&mut encoder)?;
        self.encode_reloads(&mut encoder)?;
        self.encode_mirror(&mut encoder)?;
        let services: Services = lock(&self.services)
            .iter()
            .map(|(name, entry)| (name.clone(), Arc::clone(&entry.metrics)))
            .collect();
        encode_connections(&mut encoder, &services)?;
        encode_endpoints(&mut encoder, &services)?;
        encode_handshakes(&mut encoder, &services)
    }
}

/// In order of name.
type Services = Vec<(ServiceName, Arc<ServiceMetrics>)>;

impl Inner {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        encoder
            .encode_descriptor(
                "build",
                "The version of tlsward that runs.",
                None,
                MetricType::Info,
            )?
            .encode_info(&[("version", self.version.as_str())])?;
        encoder
            .encode_descriptor(
                "start_time",
                "When the process started, in seconds since 1970.",
                Some(&Unit::Seconds),
                MetricType::Gauge,
            )?
            .encode_gauge(&self.started_at)?;
        let mut family = encoder.encode_descriptor(
            "worker_connections",
            "Callers' connections that are open now, by the worker thread that carries them.",
            None,
            MetricType::Gauge,
        )?;
        let open = self.crew.get().into_iter().flat_map(|crew| crew.open());
        for (number, open) in open.enumerate() {
            family
                .encode_family(&[("worker", number)])?
                .encode_gauge(&i64::try_from(open).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }

    fn encode_memory(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let memory = lock(&self.memory);
        let bytes = Some(&Unit::Bytes);
        encoder
            .encode_descriptor(
                "memory",
                "Memory in use: the working set of the cgroup where that has a limit, else what the process holds.",
                bytes,
                MetricType::Gauge,
            )?
            .encode_gauge(&as_gauge(memory.status.in_use_bytes))?;
        if let Some(limit) = memory.status.limit_bytes {
            encoder
                .encode_descriptor(
                    "memory_limit",
                    "The smallest memory limit of the cgroups that the process is in.",
                    bytes,
                    MetricType::Gauge,
                )?
                .encode_gauge(&as_gauge(limit))?;
        }
        encoder
            .encode_descriptor(
                "memory_callers_wait",
                "1 while new callers wait since little memory is left, else 0.",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&i64::from(memory.status.callers_wait))?;
        encoder
            .encode_descriptor(
                "memory_waits",
                "How often new callers had to wait since little memory was left.",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, f64>(&memory.waits, None)
    }

    fn encode_reloads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let reloads = lock(&self.reloads);
        let mut family = encoder.encode_descriptor(
            "reloads",
            "Reads of a configuration, identity or trust, by what caused the read and its result.",
            None,
            MetricType::Counter,
        )?;
        for ((source, trigger, result), count) in &reloads.counts {
            let labels = [
                ("source", *source),
                ("trigger", *trigger),
                ("result", *result),
            ];
            counter(&mut family, &labels, *count)?;
        }
        let mut family = encoder.encode_descriptor(
            "reload_last_success",
            "When a source was last read and found good, in seconds since 1970.",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (source, at) in &reloads.last_success {
            family
                .encode_family(&[("source", *source)])?
                .encode_gauge(at)?;
        }
        Ok(())
    }

    fn encode_mirror(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mirror = lock(&self.mirror);
        encoder
            .encode_descriptor(
                "stopping",
                "1 from when the process is asked to end, else 0.",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&i64::from(mirror.stopping))?;
        let mut family = encoder.encode_descriptor(
            "sandbox",
            "1 where this part of the sandbox is in force, else 0.",
            None,
            MetricType::Gauge,
        )?;
        for (part, on) in &mirror.sandbox {
            family
                .encode_family(&[("part", *part)])?
                .encode_gauge(&i64::from(*on))?;
        }
        encoder
            .encode_descriptor(
                "config_generation",
                "How many configurations came into force; 0 before the first.",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&mirror.config_generation)?;
        let mut gauge = |name, help, unit: Option<&Unit>, value: MirroredValue| {
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for service in &mirror.services {
                if let Some(value) = value(service) {
                    family
                        .encode_family(&[("service", service.name.as_str())])?
                        .encode_gauge(&value)?;
                }
            }
            Ok(())
        };
        let seconds = Some(&Unit::Seconds);
        gauge(
            "service_ready",
            "1 if callers of the service are served, else 0.",
            None,
            |service| Some(i64::from(service.ready)),
        )?;
        gauge(
            "identity_not_before",
            "When the client certificate in use became valid, in seconds since 1970.",
            seconds,
            |service| service.identity_not_before,
        )?;
        gauge(
            "identity_not_after",
            "When the client certificate in use expires, in seconds since 1970.",
            seconds,
            |service| service.identity_not_after,
        )?;
        gauge(
            "identity_generation",
            "How many identities came into use; 0 while there is none.",
            None,
            |service| service.identity_generation.map(as_gauge),
        )?;
        gauge(
            "trust_generation",
            "How many sets of CA certificates and revocation lists came into use; 0 while there is none.",
            None,
            |service| service.trust_generation.map(as_gauge),
        )?;
        gauge(
            "trust_not_after",
            "When the first of the CA certificates in use expires, in seconds since 1970.",
            seconds,
            |service| service.trust_not_after,
        )?;
        gauge(
            "crl_next_update",
            "When the first of the revocation lists in use is due to be replaced, in seconds since 1970.",
            seconds,
            |service| service.crl_next_update,
        )
    }
}

/// How one mirrored gauge is read from a service; `None`: the service has no such series.
type MirroredValue = fn(&MirroredService) -> Option<i64>;

fn as_gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn encode_connections(encoder: &mut DescriptorEncoder<'_>, services: &Services) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "connections_open",
        "Callers' connections that are open now.",
        None,
        MetricType::Gauge,
    )?;
    for (name, metrics) in services {
        family
            .encode_family(&[("service", name.as_str())])?
            .encode_gauge(&metrics.open())?;
    }

    let mut family = encoder.encode_descriptor(
        "connections",
        "Callers' connections that ended, by outcome; phase, side and reason are none where it is ok.",
        None,
        MetricType::Counter,
    )?;
    for (name, metrics) in services {
        let ok = metrics.ended_ok.load(Relaxed);
        counter(&mut family, &connection_labels(name, "ok", ["none"; 3]), ok)?;
        for ((phase, side, reason), count) in &lock(&metrics.failures).counts {
            let words = [phase.as_str(), side.as_str(), reason.as_str()];
            counter(
                &mut family,
                &connection_labels(name, "failed", words),
                *count,
            )?;
        }
    }

    let mut family = encoder.encode_descriptor(
        "bytes",
        "Bytes of payload written on: up is towards the upstream, down towards the caller.",
        None,
        MetricType::Counter,
    )?;
    for (name, metrics) in services {
        for (direction, bytes) in [("up", &metrics.bytes_up), ("down", &metrics.bytes_down)] {
            let labels = [("service", name.as_str()), ("direction", direction)];
            counter(&mut family, &labels, bytes.load(Relaxed))?;
        }
    }
    Ok(())
}

fn encode_endpoints(encoder: &mut DescriptorEncoder<'_>, services: &Services) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "endpoints",
        "Endpoints of the Kubernetes Service that new connections go to.",
        None,
        MetricType::Gauge,
    )?;
    for (name, metrics) in services {
        if let Some(endpoints) = lock(&metrics.endpoints).upgrade() {
            let endpoints = i64::try_from(endpoints.load(Relaxed)).unwrap_or(i64::MAX);
            family
                .encode_family(&[("service", name.as_str())])?
                .encode_gauge(&endpoints)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "endpoint_failures",
        "Failures of one endpoint after which the connection went on to another, by reason.",
        None,
        MetricType::Counter,
    )?;
    for (name, metrics) in services {
        for (reason, count) in &lock(&metrics.failures).moved_on {
            let labels = [("service", name.as_str()), ("reason", reason.as_str())];
            counter(&mut family, &labels, *count)?;
        }
    }
    Ok(())
}

fn connection_labels<'a>(
    name: &'a ServiceName,
    outcome: &'a str,
    [phase, side, reason]: [&'a str; 3],
) -> [(&'static str, &'a str); 5] {
    [
        ("service", name.as_str()),
        ("outcome", outcome),
        ("phase", phase),
        ("side", side),
        ("reason", reason),
    ]
}

fn encode_handshakes(encoder: &mut DescriptorEncoder<'_>, services: &Services) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "connect",
        "From accepting a caller until TCP to the upstream stands.",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (name, metrics) in services {
        histogram(&mut family, name, &metrics.connect)?;
    }
    let mut family = encoder.encode_descriptor(
        "handshake",
        "TLS handshakes with the upstream that were completed.",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (name, metrics) in services {
        histogram(&mut family, name, &metrics.handshake)?;
    }
    let mut family = encoder.encode_descriptor(
        "handshakes",
        "TLS handshakes with the upstream that were completed, by kind.",
        None,
        MetricType::Counter,
    )?;
    for (name, metrics) in services {
        for (kind, count) in [
            ("full", &metrics.handshakes_full),
            ("resumed", &metrics.handshakes_resumed),
        ] {
            let labels = [("service", name.as_str()), ("kind", kind)];
            counter(&mut family, &labels, count.load(Relaxed))?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "handshakes_waiting",
        "Connections that wait now for their TLS handshake, because max_handshakes are under way.",
        None,
        MetricType::Gauge,
    )?;
    for (name, metrics) in services {
        family
            .encode_family(&[("service", name.as_str())])?
            .encode_gauge(&metrics.handshakes_waiting.load(Relaxed))?;
    }
    let mut family = encoder.encode_descriptor(
        "handshakes_queued",
        "Connections that had to wait for their TLS handshake because of max_handshakes.",
        None,
        MetricType::Counter,
    )?;
    for (name, metrics) in services {
        let labels = [("service", name.as_str())];
        counter(
            &mut family,
            &labels,
            metrics.handshakes_queued.load(Relaxed),
        )?;
    }
    Ok(())
}

fn counter(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    count: u64,
) -> fmt::Result {
    family
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, _, f64>(&count, None)
}

/// The count is the sum of the buckets as read here, so that the two agree whatever is added
/// meanwhile.
fn histogram(
    family: &mut MetricEncoder<'_>,
    name: &ServiceName,
    histogram: &Histogram,
) -> fmt::Result {
    let bounds = BOUNDS
        .iter()
        .map(|bound| bound.as_secs_f64())
        .chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds
        .zip(histogram.buckets.iter().map(|bucket| bucket.load(Relaxed)))
        .collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    let sum = histogram.sum_nanos.load(Relaxed) as f64 / 1e9;
    family
        .encode_family(&[("service", name.as_str())])?
        .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

/// OpenMetrics 1.0.0 as Prometheus' own format 0.0.4: there a counter's and an info's description
/// bears the name of its samples, an info is a gauge, and there is neither `UNIT` nor `EOF`.
pub(super) fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            writeln!(
                text,
                "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}"
            )
            .expect("writing to a String cannot fail");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
