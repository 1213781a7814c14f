use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock};

use proptest::prelude::*;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use super::super::{Verifier, take_failure};
use super::*;
use crate::config::{CrlExpired, NamePattern, TlsPolicy, TlsVersion, Verify};
use crate::failure::Reason;
use crate::tls::client_config::client_config;
use crate::tls::test_pki::{
    Ca, DAY, Leaf, NOW, at, date, handshake, policy, provider, server, trust, trust_with_lists,
    unix,
};
use crate::tls::trust::Trust;

const MINUTE: i64 = 60;
const LAST: i64 = NOW + TTL.as_secs() as i64;

/// An algorithm that counts the signatures that it verifies.
#[derive(Debug)]
struct Counted {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    count: &'static AtomicUsize,
}

impl SignatureVerificationAlgorithm for Counted {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.algorithm
            .verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

/// The usual provider, and how many signatures of certificates and lists, and how many over
/// handshakes, it has verified.
fn counting_provider() -> (CryptoProvider, [&'static AtomicUsize; 2]) {
    let [chain, handshake]: [&_; 2] =
        std::array::from_fn(|_| &*Box::leak(Box::new(AtomicUsize::new(0))));
    let counted = |algorithms: Algorithms, count: &'static AtomicUsize| -> Algorithms {
        let counted = algorithms.iter().map(|algorithm| {
            let counted = Counted {
                algorithm: *algorithm,
                count,
            };
            &*Box::leak(Box::new(counted)) as &dyn SignatureVerificationAlgorithm
        });
        counted.collect::<Vec<_>>().leak()
    };
    let mut provider = provider();
    let usual = provider.signature_verification_algorithms;
    let mapping = usual.mapping.iter();
    provider.signature_verification_algorithms = WebPkiSupportedAlgorithms {
        all: counted(usual.all, chain),
        mapping: mapping
            .map(|(scheme, algorithms)| (*scheme, counted(algorithms, handshake)))
            .collect::<Vec<_>>()
            .leak(),
    };
    (provider, [chain, handshake])
}

/// A verifier that counts.
struct Counting {
    verifier: Verifier,
    signatures: &'static AtomicUsize,
}

type Chain<'a> = &'a [&'a CertificateDer<'a>];

impl Counting {
    fn new(policy: &TlsPolicy, trust: &Arc<Trust>) -> Self {
        let (provider, [signatures, _]) = counting_provider();
        Self {
            verifier: Verifier::new(policy, Some(trust), &provider),
            signatures,
        }
    }

    /// The verdict, and how many signatures were verified for it.
    fn ask(&self, chain: Chain<'_>, name: &str, at: i64) -> (Result<(), Reason>, usize) {
        let before = self.signatures.load(Ordering::Relaxed);
        let verdict = verdict(&self.verifier, chain, name, at);
        (verdict, self.signatures.load(Ordering::Relaxed) - before)
    }

    /// The chain is accepted after its signatures were verified.
    #[track_caller]
    fn anew(&self, chain: Chain<'_>, name: &str, at: i64) {
        let (verdict, signatures) = self.ask(chain, name, at);
        assert_eq!(verdict, Ok(()));
        assert!(signatures > 0, "accepted from memory");
    }

    /// The chain is accepted and no signature verified.
    #[track_caller]
    fn remembers(&self, chain: Chain<'_>, name: &str, at: i64) {
        assert_eq!(self.ask(chain, name, at), (Ok(()), 0));
    }

    #[track_caller]
    fn refuses(&self, chain: Chain<'_>, name: &str, at: i64, reason: Reason) {
        assert_eq!(self.ask(chain, name, at).0, Err(reason));
    }
}

fn verdict(verifier: &Verifier, chain: Chain<'_>, name: &str, at: i64) -> Result<(), Reason> {
    let (leaf, above) = chain.split_first().unwrap();
    let above: Vec<CertificateDer<'_>> = above.iter().map(|der| (*der).clone()).collect();
    let name = ServerName::try_from(name).unwrap();
    let result = verifier.verify_server_cert(leaf, &above, &name, &[], unix(at));
    match (result, take_failure()) {
        (Ok(_), None) => Ok(()),
        (Err(_), Some(why)) => Err(why.reason),
        (result, why) => panic!("{result:?} and {why:?} contradict each other"),
    }
}

/// Root, intermediate, leaf.
fn three() -> (Ca, Ca, Leaf) {
    let root = Ca::new("root");
    let between = root.intermediate("between");
    let leaf = between.server();
    (root, between, leaf)
}

fn with_last_byte_changed(der: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut der = der.to_vec();
    *der.last_mut().unwrap() ^= 1;
    der.into()
}

#[test]
fn the_same_chain_for_the_same_name_is_verified_once() {
    let (root, between, leaf) = three();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    let chain = &[&leaf.der, between.der()];
    assert_eq!(counting.ask(chain, "localhost", NOW), (Ok(()), 2));
    for _ in 0..3 {
        counting.remembers(chain, "localhost", NOW);
    }
    assert_eq!(counting.verifier.chains.counts(), (3, 1));
    assert!(format!("{:?}", counting.verifier).contains("remembered: 1, hits: 3, misses: 1"));
}

#[test]
fn verify_chain_remembers_too_and_verify_none_has_nothing_to_remember() {
    let (root, between, leaf) = three();
    let chain = &[&leaf.der, between.der()];
    let with = |verify| TlsPolicy {
        verify,
        allowed_names: vec![NamePattern::Dns("localhost".into())],
        ..policy()
    };
    let counting = Counting::new(&with(Verify::Chain), &trust(&[&root]));
    counting.anew(chain, "elsewhere", NOW);
    counting.remembers(chain, "elsewhere", NOW);
    let counting = Counting::new(&with(Verify::None), &trust(&[&root]));
    counting.remembers(chain, "elsewhere", NOW);
    assert_eq!(counting.verifier.chains.counts(), (0, 0));
}

#[test]
fn a_changed_byte_in_the_leaf_misses() {
    let (root, between, leaf) = three();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    counting.anew(&[&leaf.der, between.der()], "localhost", NOW);
    let changed = with_last_byte_changed(&leaf.der);
    let chain = &[&changed, between.der()];
    counting.refuses(chain, "localhost", NOW, Reason::UntrustedIssuer);
}

#[test]
fn a_changed_byte_in_an_intermediate_misses() {
    let (root, between, leaf) = three();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    counting.anew(&[&leaf.der, between.der()], "localhost", NOW);
    let changed = with_last_byte_changed(between.der());
    let chain = &[&leaf.der, &changed];
    counting.refuses(chain, "localhost", NOW, Reason::UntrustedIssuer);
}

#[test]
fn a_chain_without_its_intermediate_misses() {
    let (root, between, leaf) = three();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    counting.anew(&[&leaf.der, between.der()], "localhost", NOW);
    counting.refuses(&[&leaf.der], "localhost", NOW, Reason::UntrustedIssuer);
}

#[test]
fn another_name_misses() {
    let (root, between, leaf) = three();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    let chain = &[&leaf.der, between.der()];
    counting.anew(chain, "localhost", NOW);
    counting.refuses(chain, "other.internal", NOW, Reason::NameMismatch);
    counting.refuses(chain, "127.0.0.2", NOW, Reason::NameMismatch);
    for also_good in ["billing.internal", "127.0.0.1"] {
        counting.anew(chain, also_good, NOW);
        counting.remembers(chain, also_good, NOW);
    }
}

#[test]
fn another_order_of_the_intermediates_misses() {
    let root = Ca::new("root");
    let upper = root.intermediate("upper");
    let lower = upper.intermediate("lower");
    let leaf = lower.server();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    let ordered = &[&leaf.der, lower.der(), upper.der()];
    let reversed = &[&leaf.der, upper.der(), lower.der()];
    counting.anew(ordered, "localhost", NOW);
    counting.anew(reversed, "localhost", NOW);
    counting.remembers(ordered, "localhost", NOW);
}

/// The same bytes in the same order, with the borders between certificates elsewhere.
#[test]
fn the_same_bytes_cut_elsewhere_miss() {
    let root = Ca::new("root");
    let upper = root.intermediate("upper");
    let lower = upper.intermediate("lower");
    let leaf = lower.server();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    counting.anew(&[&leaf.der, lower.der(), upper.der()], "localhost", NOW);
    let bytes = [&leaf.der[..], lower.der(), upper.der()].concat();
    let (first, second) = (leaf.der.len(), leaf.der.len() + lower.der().len());
    for borders in [
        &[first][..],
        &[second],
        &[],
        &[first + 1, second],
        &[first, second - 1],
        &[first, second, second],
    ] {
        let mut chain = Vec::new();
        let mut from = 0;
        for border in borders.iter().chain([&bytes.len()]) {
            chain.push(CertificateDer::from(&bytes[from..*border]));
            from = *border;
        }
        let chain: Vec<&CertificateDer<'_>> = chain.iter().collect();
        let (verdict, signatures) = counting.ask(&chain, "localhost", NOW);
        assert!(
            verdict.is_err() || signatures > 0,
            "{borders:?}: accepted from memory"
        );
    }
}

#[test]
fn a_new_trust_misses() {
    let (root, between, leaf) = three();
    let other = Ca::new("other");
    let chain = &[&leaf.der, between.der()];
    let old = Counting::new(&policy(), &trust(&[&root]));
    old.anew(chain, "localhost", NOW);
    old.remembers(chain, "localhost", NOW);
    let same = Counting::new(&policy(), &trust(&[&root]));
    same.anew(chain, "localhost", NOW);
    let without = Counting::new(&policy(), &trust(&[&other]));
    without.refuses(chain, "localhost", NOW, Reason::UntrustedIssuer);
    old.remembers(chain, "localhost", NOW);
}

#[test]
fn a_new_revocation_list_misses() {
    let ca = Ca::new("root");
    let leaf = ca.server();
    let with = |revoked: &[&CertificateDer<'_>], issued| {
        let lists = [ca.crl(revoked, issued)];
        Counting::new(&policy(), &trust_with_lists(&[&ca], Some(&lists)))
    };
    let old = with(&[], NOW - DAY);
    old.anew(&[&leaf.der], "localhost", NOW);
    old.remembers(&[&leaf.der], "localhost", NOW);
    let new = with(&[&leaf.der], NOW - MINUTE);
    new.refuses(&[&leaf.der], "localhost", NOW, Reason::Revoked);
}

/// Leaf, intermediate and anchor in turn end within the time for which a verdict is kept.
#[test]
fn a_verdict_ends_with_the_first_certificate_of_its_path() {
    let end = NOW + MINUTE;
    let ends_soon = |soon: bool| {
        move |params: &mut rcgen::CertificateParams| {
            if soon {
                params.not_after = date(end);
            }
        }
    };
    for soonest in 0..3 {
        let root = Ca::with("root", ends_soon(soonest == 2));
        let between = root.intermediate_with("between", ends_soon(soonest == 1));
        let leaf = between.server_with(ends_soon(soonest == 0));
        let counting = Counting::new(&policy(), &trust(&[&root]));
        let chain = &[&leaf.der, between.der()];
        counting.anew(chain, "localhost", NOW);
        counting.remembers(chain, "localhost", end);
        counting.refuses(chain, "localhost", end + 1, Reason::Expired);
    }
}

/// What the server sends beside the path decides nothing.
#[test]
fn a_certificate_beside_the_path_ends_no_verdict() {
    let (root, between, leaf) = three();
    let stray = root.intermediate_with("stray", |params| params.not_after = date(NOW));
    let counting = Counting::new(&policy(), &trust(&[&root]));
    let chain = &[&leaf.der, between.der(), stray.der()];
    counting.anew(chain, "localhost", NOW);
    counting.remembers(chain, "localhost", NOW + MINUTE);
}

#[test]
fn a_verdict_ends_with_the_next_update_of_a_list() {
    let ca = Ca::new("root");
    let leaf = ca.server();
    let lists = [ca.crl_until(&[], NOW - DAY, NOW + MINUTE)];
    let trust = trust_with_lists(&[&ca], Some(&lists));
    let chain = &[&leaf.der];
    let counting = Counting::new(&policy(), &trust);
    counting.anew(chain, "localhost", NOW);
    counting.remembers(chain, "localhost", NOW + MINUTE - 1);
    counting.refuses(chain, "localhost", NOW + MINUTE, Reason::CrlExpired);

    let accept = TlsPolicy {
        crl_expired: CrlExpired::Accept,
        ..policy()
    };
    let counting = Counting::new(&accept, &trust);
    counting.anew(chain, "localhost", NOW);
    counting.remembers(chain, "localhost", NOW + MINUTE);
}

/// A directory of lists of which one is never replaced must not cost all the others the memory.
#[test]
fn a_list_that_is_outdated_already_ends_no_verdict_on_other_paths() {
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let leaf = ca.server();
    let lists = [
        other.crl_until(&[], NOW - 2 * DAY, NOW - DAY),
        ca.crl(&[], NOW - DAY),
    ];
    let trust = trust_with_lists(&[&ca, &other], Some(&lists));
    let counting = Counting::new(&policy(), &trust);
    counting.anew(&[&leaf.der], "localhost", NOW);
    counting.remembers(&[&leaf.der], "localhost", NOW + MINUTE);
}

#[test]
fn a_clock_that_was_set_back_misses() {
    let root = Ca::new("root");
    let leaf = root.server_with(|params| params.not_before = date(NOW - MINUTE));
    let counting = Counting::new(&policy(), &trust(&[&root]));
    counting.anew(&[&leaf.der], "localhost", NOW);
    counting.remembers(&[&leaf.der], "localhost", NOW);
    counting.refuses(
        &[&leaf.der],
        "localhost",
        NOW - MINUTE - 1,
        Reason::NotYetValid,
    );
    counting.anew(&[&leaf.der], "localhost", NOW - 1);
}

#[test]
fn a_verdict_is_good_for_five_minutes_and_is_not_renewed_by_use() {
    let (root, between, leaf) = three();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    let chain = &[&leaf.der, between.der()];
    counting.anew(chain, "localhost", NOW);
    for moment in (NOW..=NOW + 5 * MINUTE).step_by(30) {
        counting.remembers(chain, "localhost", moment);
    }
    counting.anew(chain, "localhost", NOW + 5 * MINUTE + 1);
    counting.remembers(chain, "localhost", NOW + 10 * MINUTE + 1);
}

/// The wall clock stands still or is set back while time goes on.
#[test]
fn a_verdict_ends_after_five_minutes_by_the_monotonic_clock_too() {
    let seconds = Arc::new(AtomicU64::new(0));
    let (start, told) = (Instant::now(), Arc::clone(&seconds));
    let chains =
        Chains::with_clock(move || start + Duration::from_secs(told.load(Ordering::Relaxed)));
    let leaf = CertificateDer::from(&b"leaf"[..]);
    let question = || {
        let name = ServerName::try_from("localhost").unwrap();
        chains.question(&leaf, &[], &name, unix(NOW)).unwrap()
    };
    chains.remember(&question(), NOW + DAY);
    seconds.store(300, Ordering::Relaxed);
    assert!(chains.known_good(&question()));
    seconds.store(301, Ordering::Relaxed);
    assert!(!chains.known_good(&question()));
}

#[test]
fn a_refusal_is_not_remembered_and_neither_is_a_chain_that_the_policy_refuses() {
    let (root, between, leaf) = three();
    let other = Ca::new("other");
    let trusted = trust(&[&root]);
    let chain = &[&leaf.der, between.der()];
    for (policy, trust, reason) in [
        (policy(), &trust(&[&other]), Reason::UntrustedIssuer),
        (
            TlsPolicy {
                pins: vec![[0; 32]],
                ..policy()
            },
            &trusted,
            Reason::PinMismatch,
        ),
        (
            TlsPolicy {
                allowed_names: vec![NamePattern::Dns("nobody".into())],
                ..policy()
            },
            &trusted,
            Reason::NameNotAllowed,
        ),
        (
            TlsPolicy {
                verify_depth: Some(0),
                ..policy()
            },
            &trusted,
            Reason::ChainTooLong,
        ),
    ] {
        let counting = Counting::new(&policy, trust);
        for _ in 0..2 {
            counting.refuses(chain, "localhost", NOW, reason);
        }
        assert_eq!(counting.verifier.chains.memory().good.len(), 0);
    }
}

#[test]
fn a_server_that_varies_its_chain_cannot_make_the_memory_grow() {
    let (root, between, leaf) = three();
    let counting = Counting::new(&policy(), &trust(&[&root]));
    let junk = |number: usize| CertificateDer::from(number.to_be_bytes().to_vec());
    for number in 0..=REMEMBERED {
        let junk = junk(number);
        let chain = &[&leaf.der, between.der(), &junk];
        counting.anew(chain, "localhost", NOW);
        counting.anew(chain, "localhost", NOW - 1);
        counting.remembers(chain, "localhost", NOW);
        assert!(counting.verifier.chains.memory().good.len() <= REMEMBERED);
    }
    assert_eq!(
        counting.verifier.chains.memory().good.len(),
        REMEMBERED,
        "one entry for each chain"
    );
    assert!(REMEMBERED * size_of::<Good>() <= 10 * 1024);
    // The one that was added first is gone.
    let (first, second) = (junk(0), junk(1));
    counting.remembers(&[&leaf.der, between.der(), &second], "localhost", NOW);
    counting.anew(&[&leaf.der, between.der(), &first], "localhost", NOW);
}

/// An algorithm that accepts everything, once two threads are in it at the same time.
#[derive(Debug, Default)]
struct Meeting {
    inside: Mutex<usize>,
    met: Condvar,
}

impl SignatureVerificationAlgorithm for Meeting {
    fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
        let mut inside = self.inside.lock().unwrap();
        *inside += 1;
        self.met.notify_all();
        let guard = Duration::from_secs(20);
        let (inside, _) = self
            .met
            .wait_timeout_while(inside, guard, |inside| *inside < 2)
            .unwrap();
        if *inside < 2 {
            return Err(InvalidSignature);
        }
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        rustls_pki_types::alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        rustls_pki_types::alg_id::ECDSA_SHA256
    }
}

#[test]
fn no_thread_waits_for_the_verification_of_another() {
    let root = Ca::new("root");
    let leaf = root.server();
    let meeting: &dyn SignatureVerificationAlgorithm = Box::leak(Box::<Meeting>::default());
    let mut provider = provider();
    provider.signature_verification_algorithms.all = vec![meeting].leak();
    let verifier = Verifier::new(&policy(), Some(&trust(&[&root])), &provider);
    let verify = || verdict(&verifier, &[&leaf.der], "localhost", NOW);
    let verdicts = std::thread::scope(|scope| {
        let threads = [scope.spawn(verify), scope.spawn(verify)];
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(verdicts, [Ok(()), Ok(())]);
    assert_eq!(verifier.chains.memory().good.len(), 1);
}

/// What a server can see and copy is the chain; what it cannot have is the key.
#[test]
fn the_right_chain_with_another_key_is_refused_whether_the_chain_is_remembered_or_not() {
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let policy = TlsPolicy {
            min_version: version,
            max_version: version,
            resumption: false,
            ..policy()
        };
        let (root, between, leaf) = three();
        let mut imposter = Ca::new("elsewhere").server();
        imposter.der = leaf.der.clone();
        let (provider, [chains, handshakes]) = counting_provider();
        let trust = trust(&[&root]);
        let config = client_config(&policy, None, Some(&trust), &provider).unwrap();
        let config = at(&config, NOW);
        let run = |leaf: &Leaf| {
            let before = (
                chains.load(Ordering::Relaxed),
                handshakes.load(Ordering::Relaxed),
            );
            let result = handshake(&config, server(leaf, &[&between]), "localhost");
            let verified = (
                chains.load(Ordering::Relaxed) - before.0,
                handshakes.load(Ordering::Relaxed) - before.1,
            );
            (result.map(drop), verified)
        };
        let refused = |(result, verified): (Result<_, Box<crate::tls::test_pki::Broken>>, _)| {
            let why = result.expect_err("the imposter is refused").why.unwrap();
            assert_eq!(why.reason, Reason::BadCertificate);
            assert!(why.detail.contains("does not prove that it holds the key"));
            verified
        };
        assert_eq!(refused(run(&imposter)), (2, 1), "{version:?}: unknown");
        assert_eq!(refused(run(&imposter)), (0, 1), "{version:?}: known");
        let (result, verified) = run(&leaf);
        result.unwrap();
        assert_eq!(verified, (0, 1), "{version:?}: the server itself");
    }
}

/// What the property draws from: chains good and bad, some of which end soon, and a list that is
/// to be replaced soon.
struct World {
    trusts: Vec<Arc<Trust>>,
    certificates: Vec<CertificateDer<'static>>,
}

impl World {
    fn new() -> Self {
        let soon = |seconds: i64| {
            move |params: &mut rcgen::CertificateParams| params.not_after = date(NOW + seconds)
        };
        let root = Ca::new("root");
        let brief = Ca::with("brief", soon(200));
        let between = root.intermediate("between");
        let brief_between = root.intermediate_with("between", soon(90));
        let leaves = [
            between.server(),
            between.server_with(soon(40)),
            between.server_with(|params| params.not_before = date(NOW + 60)),
            between.server(),
            root.server(),
            brief.server(),
            Ca::new("stranger").server(),
        ];
        let revoked = &leaves[3].der;
        let lists = [
            root.crl_until(&[], NOW - DAY, NOW + 150),
            between.crl_until(&[revoked], NOW - DAY, NOW + 250),
            brief.crl(&[], NOW - DAY),
        ];
        let mut certificates: Vec<_> = leaves.iter().map(|leaf| leaf.der.clone()).collect();
        certificates.push(with_last_byte_changed(&leaves[0].der));
        certificates.push(between.der().clone());
        certificates.push(brief_between.der().clone());
        Self {
            trusts: vec![
                trust(&[&root, &brief]),
                trust_with_lists(&[&root, &brief], Some(&lists)),
            ],
            certificates,
        }
    }
}

/// Indices of a leaf and of what is sent with it, a name, and seconds from [`NOW`].
type Asked = (usize, Vec<usize>, &'static str, i64);

/// Questions about two servers only, so that most have been asked before at another time.
fn questions() -> impl Strategy<Value = Vec<Asked>> {
    let sent = prop_oneof![
        4 => Just(vec![8]),
        2 => Just(vec![8, 9]),
        1 => Just(vec![9]),
        1 => prop::collection::vec(0..10usize, 0..3),
    ];
    let servers = prop::collection::vec((0..8usize, sent), 2);
    let name = prop_oneof![
        8 => Just("localhost"),
        1 => Just("127.0.0.1"),
        1 => Just("other.internal"),
    ];
    let asked = (any::<bool>(), name, -100..400i64);
    (servers, prop::collection::vec(asked, 1..40)).prop_map(|(servers, asked)| {
        asked
            .into_iter()
            .map(|(which, name, seconds)| {
                let (leaf, sent) = servers[usize::from(which)].clone();
                (leaf, sent, name, seconds)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Times jump both ways, so that some questions come before the verification that would
    /// answer them.
    #[test]
    fn a_verifier_with_a_memory_says_what_one_without_would(
        listed in any::<bool>(),
        accept in any::<bool>(),
        questions in questions(),
    ) {
        static WORLD: LazyLock<World> = LazyLock::new(World::new);
        let policy = TlsPolicy {
            crl_expired: if accept { CrlExpired::Accept } else { CrlExpired::Refuse },
            ..policy()
        };
        let trust = &WORLD.trusts[usize::from(listed)];
        let remembering = Verifier::new(&policy, Some(trust), &provider());
        for (leaf, sent, name, seconds) in questions {
            let mut chain = vec![&WORLD.certificates[leaf]];
            chain.extend(sent.iter().map(|index| &WORLD.certificates[*index]));
            let now = NOW + seconds;
            let fresh = Verifier::new(&policy, Some(trust), &provider());
            let expected = verdict(&fresh, &chain, name, now);
            prop_assert_eq!(verdict(&remembering, &chain, name, now), expected);
        }
    }
}

/// A measurement, for a quiet machine: in release mode, with `--ignored` and `--nocapture`, which
/// shows the times.
#[test]
#[ignore = "measures time"]
fn a_remembered_chain_costs_less_than_a_tenth_of_one_that_is_verified() {
    let (root, between, leaf) = three();
    let verifier = Verifier::new(&policy(), Some(&trust(&[&root])), &provider());
    let above = [between.der().clone()];
    let name = ServerName::try_from("localhost").unwrap();
    let time = |rounds: u32, at: &dyn Fn(u32) -> i64| {
        let begun = Instant::now();
        for round in 0..rounds {
            let now = unix(at(round));
            verifier
                .verify_server_cert(&leaf.der, &above, &name, &[], now)
                .unwrap();
        }
        begun.elapsed() / rounds
    };
    let bytes = leaf.der.len() + above[0].len();
    for _ in 0..3 {
        // Backwards in time: never answered from memory.
        let miss = time(2_000, &|round| NOW - i64::from(round));
        time(1, &|_| LAST);
        let hit = time(200_000, &|_| LAST);
        assert!(hit * 10 < miss, "miss {miss:?}, hit {hit:?}");
        println!("chain of 2 certificates, {bytes} bytes: miss {miss:?}, hit {hit:?}");
    }
}
