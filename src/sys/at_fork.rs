//! Functions that the system calls around `fork`. It is here because registering them is a foreign call.

/// Has `prepare` called before every `fork` of this process, `parent` after it in the parent and `child` in the child,
/// all on the forking thread. Returns whether the system took them; one without `fork` has nothing to take.
///
/// The functions must not allocate, unwind, or wait for anything but other threads of this library.
pub fn call_at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> bool {
    #[cfg(all(any(target_os = "linux", target_os = "android", target_vendor = "apple"), not(miri)))]
    // SAFETY: the three stay valid for ever: Python never unloads an extension module, and the system forgets the
    // functions of a library that a program unloads.
    let registered = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) } == 0;
    #[cfg(not(all(any(target_os = "linux", target_os = "android", target_vendor = "apple"), not(miri))))]
    let registered = {
        let _ = (prepare, parent, child);
        false
    };
    registered
}
