//! Lending a function to other threads for a while, without waiting for those that have not come.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

/// A function on loan. Whoever holds this may keep it for as long as it likes; calls do nothing once the loan is over.
pub struct Loan {
    function: &'static (dyn Fn() + Sync),
    /// Calls that are running, and [`OVER`].
    state: AtomicUsize,
    owner: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Flag in [`Loan::state`]: no more calls.
const OVER: usize = 1 << (usize::BITS - 1);
/// How often the owner looks whether running calls are done before it sleeps.
const SPINS: usize = 2000;

/// Does `work`, which may hand the loan of `function` to other threads, and ends it: waits for the calls that are running,
/// not for those that have yet to begin.
///
/// # Panics
/// If `work` does, or a call has.
pub fn lend<T>(function: &(dyn Fn() + Sync), work: impl FnOnce(&Arc<Loan>) -> T) -> T {
    // SAFETY: only the lifetime changes. `Loan::call` uses the function between its entry and its end, and this does not
    // return or unwind before `End` has seen that no call is running and none will begin.
    let function = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(function) };
    let loan = Arc::new(Loan {
        function,
        state: AtomicUsize::new(0),
        owner: std::thread::current(),
        panic: Mutex::default(),
    });
    let end = End(&loan);
    let result = work(&loan);
    drop(end);
    let panic = loan.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    match panic {
        Some(payload) => resume_unwind(payload),
        None => result,
    }
}

impl Loan {
    /// Calls the function, unless the loan is over. A panic comes out where it was lent.
    pub fn call(&self) {
        if self.state.fetch_add(1, Ordering::AcqRel) & OVER == 0
            && let Err(payload) = catch_unwind(AssertUnwindSafe(self.function))
        {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        }
        // Afterwards the function may be gone; the owner's handle is the loan's own.
        if self.state.fetch_sub(1, Ordering::AcqRel) == OVER + 1 {
            self.owner.unpark();
        }
    }
}

/// Ends a loan, also when the owner unwinds.
struct End<'a>(&'a Loan);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let state = &self.0.state;
        let mut running = state.fetch_or(OVER, Ordering::AcqRel) != 0;
        for _ in 0..SPINS {
            if !running {
                return;
            }
            std::hint::spin_loop();
            running = state.load(Ordering::Acquire) != OVER;
        }
        while state.load(Ordering::Acquire) != OVER {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn running_calls_are_waited_for_and_late_ones_do_nothing() {
        let rounds = if cfg!(miri) { 3 } else { 300 };
        for _ in 0..rounds {
            let (both, done) = (Barrier::new(2), AtomicBool::new(false));
            let calls = AtomicUsize::new(0);
            let function = || {
                both.wait();
                calls.fetch_add(1, Ordering::Relaxed);
                done.store(true, Ordering::Relaxed);
            };
            let (late, thread) = lend(&function, |loan| {
                let (late, own) = (loan.clone(), loan.clone());
                let thread = std::thread::spawn(move || own.call());
                both.wait();
                (late, thread)
            });
            assert!(done.load(Ordering::Relaxed));
            late.call();
            thread.join().expect("no panic");
            assert_eq!(calls.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn panics_come_out_where_the_function_was_lent() {
        let function = || panic!("lent");
        let lent = || {
            lend(&function, |loan| {
                let loan = loan.clone();
                std::thread::spawn(move || loan.call()).join().expect("it is kept");
            });
        };
        assert!(catch_unwind(lent).is_err());
        let late = Mutex::new(None);
        let owner = || {
            lend(&|| (), |loan| {
                *late.lock().unwrap() = Some(loan.clone());
                panic!("owner");
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(owner)).is_err());
        late.into_inner().unwrap().expect("it was kept").call();
    }
}
