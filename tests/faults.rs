//! What goes wrong on every adapter: no memory, a device that is lost, waits that are dropped, threads, queues larger than memory. A typed error or the
//! right result, nothing leaked, and the crate goes on.

mod common;
#[path = "faults/families.rs"]
mod families;

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use common::Case;
use families::{FAMILIES, SMALL, Words, codes, four, index, matrix_of, noise, two_layers};
use ndarray::{Array1, Array2, arr0};
use orthant::attention::{Options, attention};
use orthant::hamming::SearchOptions;
use orthant::knn::{self, Metric};
use orthant::kv::{AttendOptions, KvCache, Sequence};
use orthant::{Device, Error, Gpu, Tensor, kernels};

/// The same adapter opened anew: what a case does to it concerns no other.
fn fresh(device: &Device) -> Result<Device> {
    Ok(Device::gpu_at(gpu(device)?.info().index)?)
}

fn gpu(device: &Device) -> Result<&Gpu> {
    device.as_gpu().context("a GPU")
}

/// A device of the same adapter that some cases use one after the other: to compile the shaders of all families takes longer than what they do.
fn shared(device: &Device) -> Result<(Device, MutexGuard<'static, ()>)> {
    static TURN: Mutex<()> = Mutex::new(());
    static OPEN: Mutex<Vec<Device>> = Mutex::new(Vec::new());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let index = gpu(device)?.info().index;
    let known = open.iter().find(|known| gpu(known).is_ok_and(|gpu| gpu.info().index == index));
    let found = match known {
        Some(known) => known.clone(),
        None => fresh(device)?,
    };
    open.retain(|known| *known != found);
    open.push(found.clone());
    // What a case that failed has left.
    gpu(&found)?.set_memory_budget(u64::MAX);
    gpu(&found)?.fail_allocation(None);
    Ok((found, turn))
}

/// Runs `work` on a thread of its own; an error where it has not ended in time.
fn within<R: Send + 'static>(seconds: u64, what: &str, work: impl FnOnce() -> R + Send + 'static) -> Result<R> {
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn(move || drop(sender.send(work())));
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Ok(result) => Ok(result),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("{what} has not ended after {seconds} s"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Ok(()) => bail!("{what} gave nothing"),
            Err(_) => bail!("{what} panicked"),
        },
    }
}

/// Bytes that stay when nobody uses the device and idle buffers are given back: in tensors, and in transfers.
fn held(device: &Device) -> Result<[u64; 2]> {
    let gpu = gpu(device)?;
    // A wait, after which all staging buffers are back.
    device.tensor(&arr0(1u32))?.to_array()?;
    gpu.trim();
    let (in_use, idle) = gpu.memory();
    ensure!(idle == 0, "{idle} bytes idle after a trim");
    Ok([in_use, gpu.staging_memory()])
}

fn nothing_held(device: &Device, what: &str) -> Result<()> {
    let held = held(device)?;
    ensure!(held == [0, 0], "{what}: {held:?} bytes are held");
    Ok(())
}

fn is_out_of_memory(error: &Error) -> bool {
    matches!(error, Error::OutOfMemory { .. })
}

fn an_input_beyond_the_budget(device: &Device) -> Result<()> {
    let device = &fresh(device)?;
    let gpu = gpu(device)?;
    ensure!(gpu.memory_budget() == u64::MAX);
    let array = Array1::from_elem(1 << 20, 1.0f32);
    gpu.set_memory_budget(1 << 20);
    for _ in 0..3 {
        let error = device.tensor(&array).err();
        ensure!(error.as_ref().is_some_and(is_out_of_memory), "{error:?}");
        let error = device.zeros::<f32, _>(1 << 20).err();
        ensure!(error.as_ref().is_some_and(is_out_of_memory), "{error:?}");
        nothing_held(device, "refused")?;
        let small = array.slice(ndarray::s![..10_000]).to_owned();
        ensure!(device.tensor(&small)?.to_array()? == small);
    }
    // Held once as a tensor, and 8 MiB at a time on the way: 4 MiB more, but not 3.
    gpu.set_memory_budget((8 << 20) - 4);
    ensure!(device.tensor(&array).err().as_ref().is_some_and(is_out_of_memory));
    gpu.set_memory_budget(8 << 20);
    let tensor = device.tensor(&array)?;
    ensure!(tensor.to_array()? == array, "the upload's staging made room for the readback's");
    drop(tensor);
    gpu.set_memory_budget(u64::MAX);
    nothing_held(device, "at the end")
}

/// Idle buffers of other sizes make room.
fn idle_buffers_make_room(device: &Device) -> Result<()> {
    let device = &fresh(device)?;
    let gpu = gpu(device)?;
    gpu.set_memory_budget(1 << 20);
    for round in 0..40 {
        let length = 30_000 + 5000 * (round % 7);
        let array = Array1::from_shape_fn(length, |i| noise(round as u64, i));
        ensure!(device.tensor(&array)?.to_array()? == array, "round {round}");
        let (in_use, idle) = gpu.memory();
        ensure!(in_use + idle + gpu.staging_memory() <= 1 << 20);
    }
    nothing_held(device, "at the end")
}

/// Every allocation of every family fails once. Past the 16th of a family only some do, for CI's time; with `ORTHANT_EVERY_ALLOCATION` set, all.
fn every_allocation_fails_once(device: &Device) -> Result<()> {
    let (device, _turn) = &shared(device)?;
    let gpu = gpu(device)?;
    let all = std::env::var_os("ORTHANT_EVERY_ALLOCATION").is_some();
    for (name, run) in FAMILIES {
        let expected = run(device).context(name)?;
        nothing_held(device, name)?;
        let mut number = 0;
        loop {
            gpu.fail_allocation(Some(number));
            let result = run(device);
            let struck = !gpu.failure_pending();
            gpu.fail_allocation(None);
            let what = format!("{name}, allocation {number}");
            match result {
                Err(error) => ensure!(struck && is_out_of_memory(&error), "{what}: {error}"),
                Ok(words) => {
                    ensure!(!struck, "{what} failed, and nobody noticed");
                    ensure!(words == expected, "{what}: another result");
                }
            }
            nothing_held(device, &what)?;
            if !struck {
                ensure!(number > 0, "{name} allocates");
                break;
            }
            number += if number < 16 || all { 1 } else { number / 4 };
        }
        ensure!(run(device)? == expected, "{name} after {name}");
    }
    Ok(())
}

/// Budgets from nothing to enough: out of memory, or right.
fn every_budget(device: &Device) -> Result<()> {
    let (device, _turn) = &shared(device)?;
    let gpu = gpu(device)?;
    for (name, run) in FAMILIES {
        let expected = run(device).context(name)?;
        let (mut enough, mut budget) = (0, 1000u64);
        while enough < 2 {
            gpu.set_memory_budget(budget);
            gpu.trim();
            match run(device) {
                Err(error) => ensure!(is_out_of_memory(&error), "{name} in {budget} bytes: {error}"),
                Ok(words) => {
                    ensure!(words == expected, "{name} in {budget} bytes: another result");
                    enough += 1;
                }
            }
            ensure!(budget < 1 << 30, "{name} never has enough");
            gpu.set_memory_budget(u64::MAX);
            nothing_held(device, name)?;
            budget += budget / 3;
        }
    }
    Ok(())
}

/// What of a cache is seen from outside.
fn seen(cache: &KvCache, sequences: &[Sequence]) -> Result<(Words, u64)> {
    let device = cache.device();
    let mut words = Words::new();
    for layer in [0, 1] {
        for &sequence in sequences {
            words.push(cache.len(layer, sequence)? as u32);
            let q = device.tensor(&four(30, [1, 4, 2, 12]))?;
            let output = cache.attend(layer, &[sequence], &q, &AttendOptions::new())?;
            words.extend(output.output.to_array()?.iter().map(|x| x.to_bits()));
        }
    }
    Ok((words, cache.bytes()))
}

type Step = fn(&mut KvCache, &mut Vec<Sequence>) -> orthant::Result<()>;

fn append(cache: &mut KvCache, layer: usize, sequences: &[Sequence], count: usize, wait: bool) -> orthant::Result<()> {
    let rows = |seed| cache.device().tensor(&four(seed + count as u64, [sequences.len(), 2, count, 12]));
    let (k, v) = (rows(31)?, rows(32)?);
    match wait {
        true => cache.append(layer, sequences, &k, &v),
        false => cache.append_without_wait(layer, sequences, &k, &v),
    }
}

/// An error leaves a cache as it was, whichever allocation fails; the step then goes well.
fn a_failed_step_leaves_a_cache_as_it_was(device: &Device) -> Result<()> {
    let device = &fresh(device)?;
    let gpu = gpu(device)?;
    let steps: [(&str, Step); 10] = [
        ("insert", |cache, all| cache.insert().map(|one| all.push(one))),
        ("append to 0", |cache, all| append(cache, 0, all, 150, true)),
        ("append to 1", |cache, all| append(cache, 1, all, 120, true)),
        ("append without a page", |cache, all| append(cache, 0, all, 3, true)),
        ("fork", |cache, all| cache.fork(all[0]).map(|one| all.push(one))),
        ("append to both", |cache, all| append(cache, 0, all, 40, true)),
        ("append without a wait", |cache, all| append(cache, 0, all, 35, false)),
        ("cut both layers", |cache, all| cache.truncate(all[0], 75)),
        ("append over what was cut", |cache, all| append(cache, 1, all, 70, false)),
        ("remove", |cache, all| cache.remove(all[1]).map(|()| all.truncate(1))),
    ];
    let mut cache = two_layers(device)?;
    let (mut undisturbed, mut sequences, mut others) = (two_layers(device)?, Vec::new(), Vec::new());
    for (name, step) in steps {
        let before = seen(&cache, &sequences)?;
        for number in 0.. {
            gpu.fail_allocation(Some(number));
            let result = step(&mut cache, &mut sequences);
            let struck = !gpu.failure_pending();
            gpu.fail_allocation(None);
            match result {
                Err(error) => {
                    ensure!(struck && is_out_of_memory(&error), "{name}, allocation {number}: {error}");
                    ensure!(seen(&cache, &sequences)? == before, "{name}, allocation {number}: the cache has changed");
                }
                Ok(()) => {
                    ensure!(!struck, "{name}, allocation {number} failed, and nobody noticed");
                    break;
                }
            }
        }
        step(&mut undisturbed, &mut others)?;
        ensure!(seen(&cache, &sequences)? == seen(&undisturbed, &others)?, "{name} after failures");
    }
    drop((cache, undisturbed));
    nothing_held(device, "caches")
}

/// An error leaves an index as it was.
fn a_failed_step_leaves_an_index_as_it_was(device: &Device) -> Result<()> {
    let device = &fresh(device)?;
    let gpu = gpu(device)?;
    let (mut found, queries) = (index(device)?, codes(device, 33, 5)?);
    let seen = |index: &orthant::hamming::Index| -> Result<_> {
        let nearest = index.search(&queries, &SearchOptions::new(20))?;
        Ok((index.ids(), nearest.ids.to_array()?, nearest.distances.to_array()?))
    };
    for round in 0..3 {
        let more = codes(device, 34 + round, 700)?;
        let before = seen(&found)?;
        for number in 0.. {
            gpu.fail_allocation(Some(number));
            let result = found.add(&more);
            let struck = !gpu.failure_pending();
            gpu.fail_allocation(None);
            match result {
                Err(error) => {
                    ensure!(struck && is_out_of_memory(&error), "allocation {number}: {error}");
                    ensure!(seen(&found)? == before, "allocation {number}: the index has changed");
                }
                Ok(()) => break,
            }
        }
        ensure!(found.ids() == 500 + 700 * (round as usize + 1));
    }
    Ok(())
}

/// Destroyed while threads run kernels and wait: each of them learns of it, in time; then a device opened anew works.
fn a_device_is_lost_in_mid_flight(device: &Device) -> Result<()> {
    let mut expected = Vec::new();
    for (name, run) in SMALL {
        expected.push(run(device).context(name)?);
    }
    for round in 0..6u64 {
        let lost = fresh(device)?;
        let kept = lost.tensor(&Array1::from_elem(1000, 2.0f32))?;
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let (lost, expected) = (lost.clone(), expected.clone());
                move || -> (usize, Error) {
                    // Until it fails: what comes before is right.
                    for turn in 0.. {
                        let at = (worker + round as usize + turn) % SMALL.len();
                        match SMALL[at].1(&lost) {
                            Ok(words) => assert!(words == expected[at], "{} before the loss", SMALL[at].0),
                            Err(error) => return (at, error),
                        }
                    }
                    unreachable!("the device is destroyed")
                }
            })
            .collect();
        let waiting = workers.into_iter().map(|worker| thread::spawn(|| within(60, "work on a lost device", worker)));
        let waiting: Vec<_> = waiting.collect();
        // From before the first kernel is compiled to long after.
        thread::sleep(Duration::from_micros(round * round * 3000 + round * 100));
        gpu(&lost)?.destroy();
        for worker in waiting {
            let (at, error) = worker.join().ok().context("a thread panicked")??;
            ensure!(matches!(error, Error::DeviceLost { .. }), "{}: {error:?}", SMALL[at].0);
        }
        let after = lost.clone();
        within(60, "calls after the loss", move || -> Result<()> {
            for (name, run) in SMALL {
                let error = run(&after).err();
                ensure!(matches!(error, Some(Error::DeviceLost { .. })), "{name}: {error:?}");
            }
            let wait = kept.to_array().err();
            ensure!(matches!(wait, Some(Error::DeviceLost { .. })), "{wait:?}");
            let flush = gpu(&after)?.flush().err();
            ensure!(matches!(flush, Some(Error::DeviceLost { .. })), "{flush:?}");
            drop(kept);
            gpu(&after)?.trim();
            let held = [gpu(&after)?.memory().0, gpu(&after)?.staging_memory()];
            ensure!(held == [0, 0], "{held:?} bytes are held by a lost device");
            Ok(())
        })??;
    }
    let again = fresh(device)?;
    for ((name, run), expected) in SMALL.iter().zip(&expected) {
        ensure!(run(&again)? == *expected, "{name} on a device opened anew");
    }
    nothing_held(&again, "opened anew")
}

/// Lost while a future waits that nobody blocks on.
fn a_device_is_lost_under_a_future(device: &Device) -> Result<()> {
    for round in 0..4 {
        let lost = fresh(device)?;
        let x = lost.tensor(&Array1::from_elem(60_000, 2.0f32))?;
        let result = kernels::log_iv(&x, &x)?;
        within(60, "a future over a lost device", move || -> Result<()> {
            let mut future = pin!(result.to_array_async());
            if round % 2 == 0
                && let Poll::Ready(array) = poll_once(future.as_mut())
            {
                ensure!(array?.len() == 60_000);
                return Ok(());
            }
            gpu(&lost)?.destroy();
            // Done before it was lost, or not.
            match pollster::block_on(future) {
                Ok(array) => ensure!(array.len() == 60_000),
                Err(error) => ensure!(matches!(error, Error::DeviceLost { .. }), "{error:?}"),
            }
            Ok(())
        })??;
    }
    Ok(())
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A wait that is dropped, before it began or in the middle.
fn waits_are_dropped(device: &Device) -> Result<()> {
    let device = &fresh(device)?;
    let x = Array1::from_shape_fn(20_000, |i| 1.0 + i as f32);
    let expected = {
        let x = device.tensor(&x)?;
        kernels::log_iv(&x, &x)?.to_array()?
    };
    nothing_held(device, "before")?;
    for round in 0..50 {
        let x = device.tensor(&x)?;
        let result = kernels::log_iv(&x, &x)?;
        drop(result.to_array_async());
        for _ in 0..round % 3 {
            if let Poll::Ready(array) = poll_once(pin!(result.to_array_async())) {
                ensure!(array? == expected);
            }
        }
        ensure!(result.to_array()? == expected, "round {round}: after waits that were dropped");
    }
    nothing_held(device, "dropped waits")?;

    // A cache whose append is dropped is as before.
    for count in [1, 40, 200] {
        let (mut cache, mut undisturbed) = (two_layers(device)?, two_layers(device)?);
        let sequences = [cache.insert()?];
        undisturbed.insert()?;
        append(&mut cache, 0, &sequences, 90, true)?;
        append(&mut undisturbed, 0, &sequences, 90, true)?;
        let rows = |seed| device.tensor(&four(seed, [1, 2, count, 12]));
        let (k, v) = (rows(40)?, rows(41)?);
        if poll_once(pin!(cache.append_async(0, &sequences, &k, &v))).is_ready() {
            // It had nothing to wait for.
            undisturbed.append(0, &sequences, &k, &v)?;
        }
        for more in [0, 70] {
            append(&mut cache, 0, &sequences, more, true)?;
            append(&mut undisturbed, 0, &sequences, more, true)?;
            ensure!(seen(&cache, &sequences)? == seen(&undisturbed, &sequences)?, "an append of {count} was dropped");
        }
    }
    nothing_held(device, "dropped appends")
}

/// Two devices of one process, in turns; tensors of both in one call.
fn two_devices(device: &Device) -> Result<()> {
    let (one, two) = (fresh(device)?, fresh(device)?);
    ensure!(one != two);
    for (name, run) in SMALL {
        let expected = run(&one)?;
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| run(&one));
            let second = scope.spawn(|| run(&two));
            (first.join(), second.join())
        });
        let (first, second) = (first.ok().context("panicked")??, second.ok().context("panicked")??);
        ensure!(first == expected && second == expected, "{name}");
    }
    let mismatch = |what: &str, error: Option<Error>| {
        ensure!(matches!(error, Some(Error::DeviceMismatch { .. })), "{what}: {error:?}");
        Ok(())
    };
    let vector = |device: &Device| device.tensor(&Array1::from_elem(5, 1.0f32));
    mismatch("log_iv", kernels::log_iv(&vector(&one)?, &vector(&two)?).err())?;
    let matrix = |device: &Device| device.tensor(&matrix_of(50, 6, 6));
    mismatch("matmul", kernels::matmul(&matrix(&one)?, &matrix(&two)?, false, false).err())?;
    mismatch("normalize_rows", kernels::normalize_rows(&matrix(&one)?, Some(&matrix(&two)?)).err())?;
    mismatch("knn", knn::search(&matrix(&one)?, &matrix(&two)?, 2, Metric::L2).err())?;
    let rows = |device: &Device| device.tensor(&four(51, [1, 2, 3, 12]));
    mismatch("attention", attention(&rows(&one)?, &rows(&two)?, &rows(&one)?, &Options::new()).err())?;
    let bias = Options::new().bias(two.tensor(&four(52, [1, 1, 3, 3]))?);
    mismatch("bias", attention(&rows(&one)?, &rows(&one)?, &rows(&one)?, &bias).err())?;
    let mut cache = two_layers(&one)?;
    let sequence = cache.insert()?;
    mismatch("append", cache.append(0, &[sequence], &rows(&one)?, &rows(&two)?).err())?;
    mismatch("attend", cache.attend(0, &[sequence], &rows(&two)?, &AttendOptions::new()).err())?;
    let mut found = index(&one)?;
    mismatch("search", found.search(&codes(&two, 53, 3)?, &SearchOptions::new(2)).err())?;
    mismatch("add", found.add(&codes(&two, 53, 3)?).err())?;
    mismatch("hamming", kernels::hamming(&codes(&one, 53, 3)?, &codes(&two, 53, 3)?).err())?;
    // One is lost, the other goes on.
    drop((cache, found, bias));
    gpu(&one)?.destroy();
    for (name, run) in SMALL {
        ensure!(run(&one).is_err() && run(&two).is_ok(), "{name}");
    }
    nothing_held(&two, "the other")
}

/// Eight threads with a family each, in turns: the same as alone, bit for bit.
fn eight_threads(device: &Device) -> Result<()> {
    let (device, _turn) = &shared(device)?;
    let mut expected = Vec::new();
    for (name, run) in FAMILIES {
        expected.push(run(device).context(name)?);
    }
    let together = |outcome: &(dyn Fn(usize, orthant::Result<Words>) -> Result<()> + Sync)| {
        thread::scope(|scope| {
            let work = |worker: usize| {
                move || {
                    (0..3).try_for_each(|turn| {
                        let at = (worker + 4 * turn) % FAMILIES.len();
                        outcome(at, FAMILIES[at].1(device))
                    })
                }
            };
            let workers: Vec<_> = (0..8).map(|worker| scope.spawn(work(worker))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().ok().context("a thread panicked")?)
        })
    };
    together(&|at, result| {
        ensure!(result? == expected[at], "{} among others", FAMILIES[at].0);
        Ok(())
    })?;
    nothing_held(device, "eight threads")?;
    // And where memory is not enough for all of them: some fail, none is wrong.
    gpu(device)?.set_memory_budget(300_000);
    together(&|at, result| {
        match result {
            Ok(words) => ensure!(words == expected[at], "{} in little memory", FAMILIES[at].0),
            Err(error) => ensure!(is_out_of_memory(&error), "{}: {error:?}", FAMILIES[at].0),
        }
        Ok(())
    })?;
    gpu(device)?.set_memory_budget(u64::MAX);
    nothing_held(device, "eight threads in little memory")
}

/// 5000 calls, each of the last one's result.
fn thousands_of_small_ops(device: &Device) -> Result<()> {
    let device = &fresh(device)?;
    let order = device.tensor(&arr0(1.0f32))?;
    let step = |value: &Tensor<f32, _>| kernels::iv_ratio_complement(&order, value);
    let start = Array1::from_shape_fn(300, |i| 0.5 + i as f32);
    let (mut chained, mut waiting) = (device.tensor(&start)?, device.tensor(&start)?);
    for number in 1..=5000 {
        chained = step(&chained)?;
        waiting = step(&waiting)?;
        if number % 500 == 0 {
            waiting = device.tensor(&waiting.to_array()?)?;
        }
    }
    ensure!(chained.to_array()? == waiting.to_array()?, "a long chain");
    drop((order, chained, waiting));
    nothing_held(device, "long chains")
}

/// Work that would fill memory many times over, were it not reused.
fn a_queue_larger_than_memory(device: &Device) -> Result<()> {
    let device = &fresh(device)?;
    let gpu = gpu(device)?;
    const BUDGET: u64 = 1 << 20;
    let expected = |round: usize| Array2::from_shape_fn((40, 40), |(i, j)| noise(round as u64, i * 40 + j));
    gpu.set_memory_budget(BUDGET);
    let identity = device.tensor(&Array2::<f32>::eye(40))?;
    let mut results = Vec::new();
    // 120 tensors of 80 KiB and more, 10 MiB, in 1.
    for round in 0..60 {
        let small = device.tensor(&expected(round))?;
        let tall =
            device.tensor(&Array2::from_shape_fn((500 + 5 * round, 40), |(i, j)| f32::from(u8::from(i == j))))?;
        let large = kernels::matmul(&tall, &small, false, false)?;
        let back = kernels::matmul(&tall, &large, true, false)?;
        if round % 20 == 0 {
            results.push((round, kernels::matmul(&back, &identity, false, false)?));
        }
        let (in_use, idle) = gpu.memory();
        ensure!(in_use + idle + gpu.staging_memory() <= BUDGET, "round {round}");
    }
    for (round, result) in results {
        ensure!(result.to_array()? == expected(round), "round {round}");
    }
    drop(identity);
    nothing_held(device, "a long queue")
}

/// Devices that are opened, used without a wait, and dropped.
fn devices_are_dropped_with_work_in_flight(device: &Device) -> Result<()> {
    for round in 0..6 {
        let other = fresh(device)?;
        let x = other.tensor(&Array1::from_elem(20_000, 1.0 + round as f32))?;
        let result = kernels::log_iv(&x, &x)?;
        match round % 3 {
            0 => drop(x),
            1 => gpu(&other)?.flush()?,
            _ => drop(poll_once(pin!(result.to_array_async()))),
        }
        drop(other);
        if round == 4 {
            // A tensor keeps its device.
            result.to_array()?;
        }
    }
    Ok(())
}

fn main() {
    let case = |name: &str, run: fn(&Device) -> Result<()>| Case::new("faults", name, run);
    let cases = vec![
        case("an input beyond the budget", an_input_beyond_the_budget),
        case("idle buffers make room", idle_buffers_make_room),
        case("every allocation fails once", every_allocation_fails_once),
        case("every budget", every_budget),
        case("a failed step leaves a cache as it was", a_failed_step_leaves_a_cache_as_it_was),
        case("a failed step leaves an index as it was", a_failed_step_leaves_an_index_as_it_was),
        case("a device is lost in mid-flight", a_device_is_lost_in_mid_flight),
        case("a device is lost under a future", a_device_is_lost_under_a_future),
        case("waits are dropped", waits_are_dropped),
        case("two devices", two_devices),
        case("eight threads", eight_threads),
        case("thousands of small ops", thousands_of_small_ops),
        case("a queue larger than memory", a_queue_larger_than_memory),
        case("devices are dropped with work in flight", devices_are_dropped_with_work_in_flight),
    ];
    common::main(cases, Vec::new())
}
