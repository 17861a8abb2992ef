//! Where the time goes, in builds with the feature `section-timers`; in others nothing of this is left.
//!
//! A section is a kind of work in a part of the model ([`Work`], [`Place`]). A thread is in one at a time: the one of the
//! innermost guard that it holds. So times are exclusive: what an inner section takes, the outer one does not have. Times
//! of all threads are added. Tasks begin in the section of the thread that shares them out ([`Region`]).

pub use super::sections::{Place, Work};
pub use recorder::{Guard, Region, at, at_second_product, take_section_times, timed, timed_product};

/// What one section took since the last time that somebody asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SectionTime {
    /// In which part of the model.
    pub place: Place,
    /// Which kind of work.
    pub work: Work,
    /// Times of all threads added.
    pub seconds: f64,
    /// How often the section was entered.
    pub calls: u64,
    /// Of products: operations, a multiplication and an addition counted as two.
    pub operations: u64,
}

#[cfg(any(test, feature = "section-timers"))]
mod recorder {
    use std::cell::Cell;
    use std::marker::PhantomData;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use super::{Place, SectionTime, Work};

    type Section = (Place, Work);

    /// Counts of one section of one thread.
    #[derive(Default)]
    struct Counts {
        nanoseconds: AtomicU64,
        calls: AtomicU64,
        operations: AtomicU64,
    }

    /// One thread's counts, by place and work. No other thread adds to them.
    struct Table(Vec<Counts>);

    /// The tables of all threads there have been.
    static TABLES: Mutex<Vec<Arc<Table>>> = Mutex::new(Vec::new());

    thread_local! {
        static CLOCK: Clock = Clock::new();
    }

    /// Which section a thread is in.
    struct Clock {
        section: Cell<Option<Section>>,
        since: Cell<Instant>,
        table: Arc<Table>,
    }

    impl Table {
        fn of(&self, (place, work): Section) -> &Counts {
            &self.0[place as usize * Work::ALL.len() + work as usize]
        }

        fn add_time(&self, section: Section, time: Duration) {
            self.of(section).nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    impl Clock {
        fn new() -> Self {
            let counts = (0..Place::ALL.len() * Work::ALL.len()).map(|_| Counts::default()).collect();
            let table = Arc::new(Table(counts));
            TABLES.lock().unwrap_or_else(PoisonError::into_inner).push(table.clone());
            Clock { section: Cell::new(None), since: Cell::new(Instant::now()), table }
        }

        /// Ends the time of the present section and begins that of another one; returns the one before.
        fn switch(&self, to: Option<Section>) -> Option<Section> {
            let now = Instant::now();
            if let Some(from) = self.section.get() {
                self.table.add_time(from, now - self.since.get());
            }
            self.since.set(now);
            self.section.replace(to)
        }
    }

    /// A section of this thread, until it is dropped.
    #[must_use]
    pub struct Guard {
        before: Option<Section>,
        /// Belongs to its thread.
        _not_send: PhantomData<*const ()>,
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            CLOCK.with(|clock| clock.switch(self.before));
        }
    }

    fn enter(section: impl Fn(Section) -> Section, operations: usize) -> Guard {
        CLOCK.with(|clock| {
            let to = section(clock.section.get().unwrap_or((Place::Elsewhere, Work::Other)));
            let counts = clock.table.of(to);
            counts.calls.fetch_add(1, Ordering::Relaxed);
            counts.operations.fetch_add(operations as u64, Ordering::Relaxed);
            Guard { before: clock.switch(Some(to)), _not_send: PhantomData }
        })
    }

    /// Begins work of a kind, where the thread is.
    pub fn timed(work: Work) -> Guard {
        enter(|(place, _)| (place, work), 0)
    }

    /// Begins a product of so many operations.
    pub fn timed_product(operations: usize) -> Guard {
        enter(|(place, _)| (place, Work::Product), operations)
    }

    /// Goes to a part of the model, with [`Work::Other`] until there is something else.
    pub fn at(place: Place) -> Guard {
        enter(|_| (place, Work::Other), 0)
    }

    /// Goes on to the second product of a feed-forward layer, where this is one.
    pub fn at_second_product() -> Guard {
        let second = |(place, _)| match place {
            Place::FeedForward => (Place::FeedForwardOutput, Work::Other),
            Place::Mixture => (Place::MixtureOutput, Work::Other),
            place => (place, Work::Other),
        };
        enter(second, 0)
    }

    /// Tasks that threads share: until it is dropped, each of them is at its share or waits.
    pub struct Region {
        section: Option<Section>,
        threads: usize,
        begin: Instant,
        /// Nanoseconds of all shares.
        busy: AtomicU64,
    }

    impl Region {
        /// Begins tasks for `threads` threads, the caller among them.
        pub fn new(threads: usize) -> Self {
            let section = CLOCK.with(|clock| clock.section.get().and_then(|_| clock.switch(None)));
            Region { section, threads, begin: Instant::now(), busy: AtomicU64::new(0) }
        }

        /// Begins the share of the thread that calls.
        pub fn share(&self) -> Share<'_> {
            let begin = Instant::now();
            let before = CLOCK.with(|clock| clock.switch(self.section));
            Share { region: self, begin, _section: Guard { before, _not_send: PhantomData } }
        }
    }

    impl Drop for Region {
        fn drop(&mut self) {
            let Some(section) = self.section else { return };
            let all = self.begin.elapsed() * self.threads as u32;
            let waited = all.saturating_sub(Duration::from_nanos(self.busy.load(Ordering::Relaxed)));
            CLOCK.with(|clock| {
                clock.switch(Some(section));
                let waiting = (section.0, Work::Waiting);
                clock.table.of(waiting).calls.fetch_add(1, Ordering::Relaxed);
                clock.table.add_time(waiting, waited);
            });
        }
    }

    /// What one thread does of a region.
    #[must_use]
    pub struct Share<'a> {
        region: &'a Region,
        begin: Instant,
        _section: Guard,
    }

    impl Drop for Share<'_> {
        fn drop(&mut self) {
            self.region.busy.fetch_add(self.begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Times of all sections that have been entered, which begin again at zero. `None` in builds without timers. To be
    /// called while nothing computes: a section that is not left yet counts for the next time.
    pub fn take_section_times() -> Option<Vec<SectionTime>> {
        let tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times = Vec::new();
        for &place in Place::ALL {
            for &work in Work::ALL {
                let mut sum = SectionTime { place, work, seconds: 0.0, calls: 0, operations: 0 };
                for counts in tables.iter().map(|table| table.of((place, work))) {
                    sum.seconds += counts.nanoseconds.swap(0, Ordering::Relaxed) as f64 / 1e9;
                    sum.calls += counts.calls.swap(0, Ordering::Relaxed);
                    sum.operations += counts.operations.swap(0, Ordering::Relaxed);
                }
                if sum.calls > 0 || sum.seconds > 0.0 {
                    times.push(sum);
                }
            }
        }
        Some(times)
    }

    /// Seconds and calls of a section so far, of all threads.
    #[cfg(test)]
    pub(crate) fn so_far(place: Place, work: Work) -> (f64, u64) {
        let tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        tables.iter().map(|table| table.of((place, work))).fold((0.0, 0), |(seconds, calls), counts| {
            let nanoseconds = counts.nanoseconds.load(Ordering::Relaxed);
            (seconds + nanoseconds as f64 / 1e9, calls + counts.calls.load(Ordering::Relaxed))
        })
    }
}

#[cfg(not(any(test, feature = "section-timers")))]
mod recorder {
    use super::{Place, SectionTime, Work};

    /// Stands for nothing in builds without timers.
    #[must_use]
    pub struct Guard;

    impl Drop for Guard {
        #[inline(always)]
        fn drop(&mut self) {}
    }

    /// Does nothing in builds without timers.
    #[inline(always)]
    pub fn timed(_work: Work) -> Guard {
        Guard
    }

    /// Does nothing in builds without timers.
    #[inline(always)]
    pub fn timed_product(_operations: usize) -> Guard {
        Guard
    }

    /// Does nothing in builds without timers.
    #[inline(always)]
    pub fn at(_place: Place) -> Guard {
        Guard
    }

    /// Does nothing in builds without timers.
    #[inline(always)]
    pub fn at_second_product() -> Guard {
        Guard
    }

    /// Stands for nothing in builds without timers.
    pub struct Region;

    impl Region {
        /// Does nothing in builds without timers.
        #[inline(always)]
        pub fn new(_threads: usize) -> Self {
            Region
        }

        /// Does nothing in builds without timers.
        #[inline(always)]
        pub fn share(&self) -> Guard {
            Guard
        }
    }

    /// `None` in builds without timers.
    pub fn take_section_times() -> Option<Vec<SectionTime>> {
        None
    }
}

#[cfg(test)]
pub(crate) use recorder::so_far;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn spend(milliseconds: u64) {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }

    #[test]
    fn an_outer_section_does_not_have_the_time_of_an_inner_one() {
        // Pairs that no other test has.
        let outer = || so_far(Place::MixtureOutput, Work::Dropout);
        let inner = || so_far(Place::MixtureOutput, Work::Update);
        let before = [outer(), inner()];
        let begin;
        {
            let _place = at(Place::MixtureOutput);
            begin = Instant::now();
            let _outer = timed(Work::Dropout);
            spend(20);
            for _ in 0..2 {
                let _inner = timed(Work::Update);
                spend(30);
            }
            spend(20);
        }
        let all = begin.elapsed().as_secs_f64();
        let after = [outer(), inner()];
        let seconds = [0, 1].map(|i| after[i].0 - before[i].0);
        assert_eq!([0, 1].map(|i| after[i].1 - before[i].1), [1, 2], "calls");
        assert!(seconds[0] >= 0.04 && seconds[1] >= 0.06, "{seconds:?}");
        // The machine may be busy: what is between two readings of the clock has no bound.
        let sum = seconds[0] + seconds[1];
        assert!((0.8 * all..=all + 1e-6).contains(&sum), "{seconds:?} of {all}");
    }

    #[test]
    fn products_know_which_half_of_a_layer_they_are() {
        let calls = |place| so_far(place, Work::Product).1;
        let before = [calls(Place::MixtureOutput), calls(Place::KernelGradient)];
        {
            let _place = at(Place::Mixture);
            let _half = at_second_product();
            drop(timed_product(6));
        }
        assert!(calls(Place::MixtureOutput) > before[0]);
        {
            let _place = at(Place::KernelGradient);
            let _half = at_second_product();
            drop(timed_product(6));
        }
        assert!(calls(Place::KernelGradient) > before[1]);
    }
}
