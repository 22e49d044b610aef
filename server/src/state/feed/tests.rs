use super::super::State;
use super::super::phase::{ContainerEvent, Exit, PodEvent, Reason};
use super::super::record::tests::{DECODE, container, pod};
use super::super::recover::recover;
use super::*;

struct Bed {
    dir: tempfile::TempDir,
    state: State,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "boot".to_owned()).unwrap();
        Self { dir, state }
    }

    /// A pod that is ready.
    fn ready(&self, name: &str) -> Pod {
        let pod = pod(name, 0);
        self.state.insert_pod(pod.clone()).unwrap();
        self.state.pod_event(&pod.record.id, PodEvent::Started).unwrap();
        pod
    }

    /// A container that waits at its gate.
    fn created(&self, pod: &Pod, name: &str) -> ContainerId {
        let container = container(pod, name);
        let id = container.record.id;
        self.state.insert_container(container).unwrap();
        self.event(id, ContainerEvent::Built { pid: 1 });
        id
    }

    fn event(&self, id: ContainerId, event: ContainerEvent) {
        self.state.container_event(&id, event).unwrap();
    }
}

fn exit(finished_at: Nanos) -> ContainerEvent {
    ContainerEvent::Exited(Exit {
        code: 3,
        reason: Reason::Error,
        message: String::new(),
        started_at: 0,
        finished_at,
    })
}

/// Everything that a listener can get without waiting.
async fn heard(listener: &mut Listener) -> Vec<Arc<News>> {
    let mut all = Vec::new();
    while let Ok(next) = tokio::time::timeout(Duration::ZERO, listener.next()).await {
        all.push(next.unwrap());
    }
    all
}

fn told(news: &[Arc<News>]) -> Vec<(Happened, Subject)> {
    news.iter().map(|n| (n.happened, n.subject)).collect()
}

#[tokio::test]
async fn a_life_is_told_in_order_with_the_pod_as_it_was() {
    use Happened::{Created, Deleted, Started, Stopped};
    let bed = Bed::new();
    let mut listener = bed.state.feed().listen();
    let pod = bed.ready("a");
    let id = bed.created(&pod, "c");
    bed.event(id, ContainerEvent::Started { at: 5 });
    bed.event(id, exit(9));
    bed.event(id, exit(10));
    bed.state.pod_event(&pod.record.id, PodEvent::Stopped).unwrap();
    bed.state.pod_event(&pod.record.id, PodEvent::Stopped).unwrap();
    bed.state.remove_container(&id).unwrap();
    bed.state.remove_pod(&pod.record.id).unwrap();
    bed.state.remove_pod(&pod.record.id).unwrap();

    let news = heard(&mut listener).await;
    let (of_pod, of_container) = (Subject::Pod(pod.record.id), Subject::Container(id));
    assert_eq!(
        told(&news),
        [
            (Created, of_pod),
            (Started, of_pod),
            (Created, of_container),
            (Started, of_container),
            (Stopped, of_container),
            (Stopped, of_pod),
            (Deleted, of_container),
            (Deleted, of_pod),
        ]
    );
    let phases: Vec<_> = news
        .iter()
        .map(|n| {
            (
                n.pod.record.phase,
                n.containers.first().map(|c| c.record.phase.name()),
            )
        })
        .collect();
    let (ready, over) = (PodPhase::Ready, PodPhase::NotReady);
    assert_eq!(
        phases,
        [
            (ready, None),
            (ready, None),
            (ready, Some("created")),
            (ready, Some("running")),
            (ready, Some("exited")),
            (over, Some("exited")),
            (over, None),
            (over, None),
        ]
    );
    assert!(news.windows(2).all(|two| two[0].at < two[1].at));
    assert!(bed.state.feed().moment() >= news[7].at);
}

#[tokio::test]
async fn what_nobody_may_see_is_no_news() {
    let bed = Bed::new();
    let mut listener = bed.state.feed().listen();
    let half = pod("a", 0);
    let id = half.record.id;
    bed.state.insert_pod(half.clone()).unwrap();
    let failed = bed.state.update_pod(&id, |record| {
        record.leftover = true;
        record.phase = PodPhase::NotReady;
        Ok(())
    });
    failed.unwrap();
    bed.state.remove_pod(&id).unwrap();
    assert!(heard(&mut listener).await.is_empty());
}

#[tokio::test]
async fn news_wait_for_listeners_and_not_for_ever() {
    let bed = Bed::new();
    let pod = bed.ready("a");
    let mut first = bed.state.feed().listen();
    let id = bed.created(&pod, "c");
    let mut second = bed.state.feed().listen();
    assert_eq!(heard(&mut first).await.len(), 3, "two were kept, one came after");
    assert_eq!(
        heard(&mut second).await.len(),
        2,
        "what somebody heard is not kept"
    );
    drop((first, second));
    bed.state.remove_container(&id).unwrap();
    assert_eq!(heard(&mut bed.state.feed().listen()).await.len(), 3);

    let mut inner = bed.state.feed().lock();
    let last = inner.kept.back().unwrap().0;
    inner.expire(last + RETENTION);
    assert!(!inner.kept.is_empty());
    inner.expire(last + RETENTION + Duration::from_nanos(1));
    assert!(inner.kept.is_empty());
}

#[tokio::test]
async fn who_is_too_slow_learns_how_much_it_missed() {
    let bed = Bed::new();
    let mut slow = bed.state.feed().listen();
    let mut fast = bed.state.feed().listen();
    let pod = Arc::new(pod("a", 0));
    let (snapshot, extra) = (Snapshot::default(), 7);
    let subject = Subject::Pod(pod.record.id);
    for _ in 0..CAPACITY + extra {
        bed.state
            .feed()
            .tell(&[Happened::Started], subject, &pod, &snapshot);
        assert!(fast.next().await.is_ok());
    }
    assert_eq!(slow.next().await.unwrap_err(), Lost::Missed(extra as u64));
    drop((slow, fast));
    for _ in 0..CAPACITY + extra {
        bed.state
            .feed()
            .tell(&[Happened::Started], subject, &pod, &snapshot);
    }
    assert_eq!(heard(&mut bed.state.feed().listen()).await.len(), KEPT);
}

#[tokio::test]
async fn the_end_of_podd_ends_listening_after_the_last_news() {
    let bed = Bed::new();
    let mut listener = bed.state.feed().listen();
    bed.ready("a");
    bed.state.feed().close();
    assert!(listener.next().await.is_ok());
    assert!(listener.next().await.is_ok());
    assert_eq!(listener.next().await.unwrap_err(), Lost::Closed);
    assert_eq!(bed.state.feed().listen().next().await.unwrap_err(), Lost::Closed);
}

#[tokio::test]
async fn a_new_podd_tells_of_late_ends_and_of_nothing_else() {
    let bed = Bed::new();
    let pod = bed.ready("a");
    let minute: Nanos = 60_000_000_000;
    let now = 100 * minute;
    for (name, at) in [
        ("late", now - minute),
        ("old", now - 6 * minute),
        ("last", now - 1),
    ] {
        let id = bed.created(&pod, name);
        bed.event(id, exit(at));
    }
    bed.created(&pod, "alive");
    let again = State::open(bed.dir.path(), "boot".to_owned()).unwrap();
    recover(&again, DECODE, now).unwrap();
    let news = heard(&mut again.feed().listen()).await;
    let names: Vec<_> = news
        .iter()
        .map(|n| {
            let Subject::Container(id) = n.subject else {
                panic!("a pod")
            };
            assert_eq!((n.happened, n.containers.len()), (Happened::Stopped, 4));
            again.snapshot().container(&id).unwrap().record.name.clone()
        })
        .collect();
    assert_eq!(names, ["late", "last"]);
}

#[tokio::test]
async fn old_news_go_without_new_ones() {
    let bed = Bed::new();
    let feed = bed.state.feed();
    let almost = RETENTION.checked_sub(Duration::from_millis(200)).unwrap();
    let telling = async {
        for name in ["a", "b"] {
            bed.ready(name);
            for (at, _) in &mut feed.lock().kept {
                *at = at.checked_sub(almost).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(feed.counts().kept, 2, "they are not old enough");
            let gone = async {
                while feed.counts().kept > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
            assert_eq!(feed.lock().kept.capacity(), 0);
        }
    };
    tokio::select! {
        () = feed.forget_each(Duration::from_millis(1)) => panic!("it does not end"),
        () = telling => {}
    }
}

#[tokio::test]
async fn what_is_told_and_missed_is_counted() {
    let bed = Bed::new();
    let counts = || bed.state.feed().counts();
    bed.ready("a");
    assert_eq!((counts().told, counts().kept, counts().listeners), (2, 2, 0));
    let mut slow = bed.state.feed().listen();
    let mut fast = bed.state.feed().listen();
    assert_eq!(heard(&mut fast).await.len(), 2);
    bed.ready("b");
    assert_eq!(heard(&mut fast).await.len(), 2);
    assert_eq!((counts().listeners, counts().waiting), (2, 2));
    let (pod, snapshot) = (Arc::new(pod("c", 0)), Snapshot::default());
    for _ in 0..CAPACITY {
        let subject = Subject::Pod(pod.record.id);
        bed.state
            .feed()
            .tell(&[Happened::Started], subject, &pod, &snapshot);
    }
    let lost = loop {
        match slow.next().await {
            Ok(news) => assert!(news.pod.record.name == "a", "kept ones come first"),
            Err(lost) => break lost,
        }
    };
    assert_eq!(lost, Lost::Missed(2));
    assert_eq!((counts().missed, counts().told), (2, 4 + CAPACITY as u64));
    drop((slow, fast));
    bed.ready("d");
    assert_eq!((counts().listeners, counts().waiting, counts().kept), (0, 0, 4));
}
