use super::*;
use crate::kernels::prepare_transposed_lhs;
use crate::kernels::testing::noise;

#[test]
fn parts_filled_one_by_one_are_the_whole() {
    let isa = Isa::fastest();
    let scratch = ScratchPool::<f32>::new();
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Int8] {
        for (k, n) in [(1, 1), (32, 64), (70, 100), (130, 512), (256, 33)] {
            let (stride, values) = (n + 3, noise(k * (n + 3), 1));
            let mut whole = ActivationPanels::new(&scratch, dtype, 1, k, n);
            whole.whole_mut(0).pack(isa, &values, stride, false, k, n);
            let mut parts = ActivationPanels::new(&scratch, dtype, 1, k, n);
            let mut turned = TransposedActivations::new(&scratch, dtype, n, k);
            let rows = (0..k).step_by(64).map(|first| (first, 64.min(k - first)));
            let left = turned.column_chunks_mut(64).expect("fitting");
            let right = parts.row_chunks_mut(1, 64).expect("fitting");
            for (((first, rows), mut left), mut right) in rows.zip(left).zip(right) {
                for columns in [0..n / 64 * 32, n / 64 * 32..n] {
                    let source = &values[first * stride + columns.start..];
                    left.fill(isa, source, stride, rows, columns.clone());
                    right.pack(isa, 0, source, stride, rows, columns);
                }
            }
            assert_eq!(format!("{:?}", parts.view(0)), format!("{:?}", whole.view(0)), "{dtype:?} {k} x {n}");
            let mut memory = vec![0.0; n * full_precision_stride::<f32>(k)];
            let mut buffer = Default::default();
            let dtype = dtype.of_activations();
            let expected =
                prepare_transposed_lhs(isa, &values, (n, k), stride, dtype, &mut memory, &mut buffer);
            for row in 0..n {
                let values = |operand: Lhs<'_, f32>| match operand.skip_rows(row) {
                    Lhs::FullPrecision { values, .. } => format!("{:?}", &values[..k]),
                    Lhs::Bfloat16 { values, .. } => format!("{:?}", &values[..k.next_multiple_of(32)]),
                    Lhs::Int8 { .. } => unreachable!("not asked for"),
                };
                assert_eq!(values(turned.view()), values(expected), "{dtype:?} {k} x {n}, row {row}");
            }
        }
    }
}
#[test]
fn rows_and_columns_of_several_operands_are_those_of_each() {
    let isa = Isa::fastest();
    let scratch = ScratchPool::<f32>::new();
    let (heads, examples) = (3, 2);
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        for (seq, head, step) in [(1, 1, 32), (64, 32, 64), (100, 70, 32), (128, 33, 64), (70, 64, 96)] {
            let count = examples * heads;
            let stride = heads * head;
            let rows = noise(examples * seq * stride, 1);
            let source = |matrix: usize| &rows[matrix / heads * seq * stride + matrix % heads * head..];
            let [mut whole, mut parts] =
                [(); 2].map(|()| ActivationPanels::new(&scratch, dtype, count, seq, head));
            let [mut turned, mut turned_parts] =
                [(); 2].map(|()| ActivationPanels::new(&scratch, dtype, count, head, seq));
            for matrix in 0..count {
                whole.whole_mut(matrix).pack(isa, source(matrix), stride, false, seq, head);
                turned.whole_mut(matrix).pack(isa, source(matrix), stride, true, head, seq);
            }
            let chunks = parts.row_chunks_mut(heads, step).expect("fitting");
            let blocks =
                (0..examples).flat_map(|example| (0..seq).step_by(step).map(move |first| (example, first)));
            let chunks = chunks.zip(turned_parts.column_chunks_mut(heads, step).expect("fitting"));
            let mut filled = 0;
            for ((example, first), (mut by_rows, mut by_columns)) in blocks.clone().zip(chunks) {
                let own = step.min(seq - first);
                for n in 0..heads {
                    let from = &source(example * heads + n)[first * stride..];
                    by_rows.pack(isa, n, from, stride, own, 0..head);
                    by_columns.pack_transposed(isa, n, from, stride, head, own);
                }
                filled += 1;
            }
            assert_eq!(filled, blocks.count(), "{seq} x {head}");
            for matrix in 0..count {
                let what = format!("{dtype:?} {seq} x {head}, {matrix}");
                assert_eq!(
                    format!("{:?}", parts.view(matrix)),
                    format!("{:?}", whole.view(matrix)),
                    "{what}"
                );
                let [got, expected] =
                    [&turned_parts, &turned].map(|panels| format!("{:?}", panels.view(matrix)));
                assert_eq!(got, expected, "{what}");
            }
        }
    }
}
