//! Single-thread rates of the products on the Base model's shapes, against the multiply-add rate measured in the same
//! run: `cargo bench --bench kernels [-- isa]`. `--json` prints the products alone, a line of JSON each.
//!
//! The peak is measured before each figure, and the share is the median of the ratios: processors lower their clock
//! under wide multiply-adds, by the second, and neighbours come and go. Shares of bfloat16 and 8-bit products are of the
//! `f32` peak too, so that they tell the gain over a perfect `f32` product. Left operands are converted beforehand;
//! what that costs is listed below the products.

use std::hint::black_box;
use std::time::Instant;

use sparse_mixer::kernels::{
    Dtype, Elementwise, Init, Isa, LhsBuffer, PackedMatrix, dropout, elementwise, layer_norm, matmul,
    multiply_adds, prepare_lhs, softmax_in_place,
};
use sparse_mixer::sys::AlignedVec;

/// `(rows, k, n)`: experts at batch 1, token blocks of the dense layers, attention.
const SHAPES: [(usize, usize, usize); 11] = [
    (32, 512, 2048),
    (32, 2048, 512),
    (96, 512, 2048),
    (96, 2048, 512),
    (96, 512, 512),
    (512, 512, 2048),
    (512, 2048, 512),
    (512, 512, 512),
    (512, 64, 512),
    (512, 512, 64),
    (4096, 512, 512),
];
const DTYPES: [(&str, Dtype); 4] = [
    ("float32", Dtype::Float32),
    ("float16", Dtype::Float16),
    ("bfloat16", Dtype::Bfloat16),
    ("int8", Dtype::Int8),
];
const ROUNDS: usize = 15;
/// A measurement repeats its work for at least so long.
const SECONDS: f64 = 0.01;

/// Units of work per second: `work` does `units` of them.
fn rate(units: f64, mut work: impl FnMut()) -> f64 {
    work();
    let mut repeats = 0;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < SECONDS {
        work();
        repeats += 1;
    }
    units * f64::from(repeats) / start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Numbers in [-1, 1), the same in every run.
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

struct Product {
    shape: (usize, usize, usize),
    a: Vec<f32>,
    b: PackedMatrix<f32>,
    bias: Vec<f32>,
    out: AlignedVec<f32>,
}

impl Product {
    fn new(shape: (usize, usize, usize), dtype: Dtype) -> Self {
        let (m, k, n) = shape;
        let b = PackedMatrix::pack(k, n, dtype, &numbers(k * n));
        Product { shape, a: numbers(m * k), b, bias: numbers(n), out: AlignedVec::zeros(m * n) }
    }

    fn flops(&mut self, isa: Isa) -> f64 {
        let (m, k, n) = self.shape;
        let mut buffer = LhsBuffer::default();
        let lhs = prepare_lhs(isa, &self.a, m, k, k, self.b.dtype(), &mut buffer);
        rate(2.0 * (m * k * n) as f64, || {
            matmul(isa, m, lhs, self.b.view(), 0..n, &mut self.out, n, Init::Bias(&self.bias));
            black_box(&self.out);
        })
    }
}

fn peak(isa: Isa) -> f64 {
    const STEPS: usize = 200_000;
    let (flops, _) = multiply_adds::<f32>(isa, 1);
    rate((flops * STEPS) as f64, || {
        // An opaque argument, or one call would serve all repeats.
        black_box(multiply_adds::<f32>(isa, black_box(STEPS)));
    })
}

/// Values per second of row and element-wise work on a block that fits the L2 cache.
fn other_work(isa: Isa) -> Vec<(&'static str, f64)> {
    let (rows, n) = (96, 512);
    let x = numbers(rows * n);
    let (gamma, beta) = (numbers(n), numbers(n));
    let mut y = x.clone();
    let values = (rows * n) as f64;
    let mut measured = Vec::new();
    for (name, function) in [
        ("gelu (tanh)", Elementwise::GeluTanh),
        ("gelu (erf)", Elementwise::GeluErf),
        ("tanh", Elementwise::Tanh),
    ] {
        // The input is copied each time: repeated application would drive it to a fixed point.
        measured.push((
            name,
            rate(values, || {
                y.copy_from_slice(&x);
                elementwise(isa, function, &mut y);
                black_box(&y);
            }),
        ));
    }
    measured.push((
        "layer norm",
        rate(values, || {
            layer_norm(isa, &x, &gamma, &beta, 1e-12, &mut y, None);
            black_box(&y);
        }),
    ));
    measured.push((
        "softmax",
        rate(values, || {
            y.copy_from_slice(&x);
            softmax_in_place(isa, &mut y, n);
            black_box(&y);
        }),
    ));
    measured.push((
        "dropout",
        rate(values, || {
            dropout(isa, [1, 2], 0, 0.1, 1.0, &mut y);
            black_box(&y);
        }),
    ));
    for (name, dtype) in [("to bfloat16", Dtype::Bfloat16), ("to int8", Dtype::Int8)] {
        let mut buffer = LhsBuffer::default();
        measured.push((
            name,
            rate(values, || {
                black_box(prepare_lhs(isa, &x, rows, n, n, dtype, &mut buffer));
            }),
        ));
    }
    measured
}

fn report_products(isa: Isa, name: &str, dtype: Dtype, json: bool) {
    let mut products: Vec<_> = SHAPES.iter().map(|&shape| Product::new(shape, dtype)).collect();
    let mut peaks = Vec::new();
    let mut rates = vec![Vec::new(); products.len()];
    let mut ratios = rates.clone();
    for _ in 0..ROUNDS {
        for (i, product) in products.iter_mut().enumerate() {
            let peak = peak(isa);
            let flops = product.flops(isa);
            peaks.push(peak);
            rates[i].push(flops);
            ratios[i].push(flops / peak);
        }
    }
    let peak = median(peaks) / 1e9;
    if json {
        for ((&(m, k, n), rates), ratios) in SHAPES.iter().zip(rates).zip(ratios) {
            let (rate, share) = (median(rates), median(ratios));
            println!(
                r#"{{"isa": "{}", "dtype": "{name}", "shape": [{m}, {k}, {n}], "rate": {rate}, "of_float32_peak": {share}}}"#,
                isa.name()
            );
        }
        return;
    }
    println!("{name} on {}, one thread; f32 multiply-add peak {peak:.1} GFLOP/s", isa.name());
    for ((&(m, k, n), rates), ratios) in SHAPES.iter().zip(rates).zip(ratios) {
        let share = 100.0 * median(ratios);
        println!(
            "matmul {m:>5} x {k:>4} x {n:>4}: {:>7.1} GFLOP/s {share:>6.1}% of peak",
            median(rates) / 1e9
        );
    }
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    let pinned = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let isa = match &pinned {
        Some(name) => Isa::parse(name, "isa"),
        None => Isa::detect(),
    };
    let isa = isa.unwrap_or_else(|error| panic!("{error}"));
    for (name, dtype) in DTYPES {
        report_products(isa, name, dtype, json);
    }
    if json {
        return;
    }
    for (name, rate) in other_work(isa) {
        println!("{name:<12} {:>7.2} Gvalues/s", rate / 1e9);
    }
}
