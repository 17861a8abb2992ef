//! One block by itself, on a stream that the caller gives.

use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::runtime::Context;
use crate::sys::alloc_zeroed;

use super::attention_mask::AttentionMask;
use super::encoder::SparseMixer;

impl<R: Real> SparseMixer<R> {
    /// What block `layer` makes of the stream `x`, `[B, S, H]`: all rows, also where the encoder computes only some of its
    /// last block, as in TensorFlow.
    ///
    /// `mask`, `[B, S, S]`, says which keys each query may see; `None` for all. `training` holds the seed of dropout and
    /// jitter, or `None` for inference.
    ///
    /// # Errors
    /// [`Error::Value`] naming the argument that cannot be; [`Error::Interrupted`].
    pub fn block_forward(
        &self,
        context: &Context<'_, R>,
        layer: usize,
        x: &[R],
        (batch, seq): (usize, usize),
        mask: Option<&[R]>,
        training: Option<u64>,
    ) -> Result<Vec<R>> {
        let hidden = self.config.hidden_size;
        let Some(block) = self.blocks.get(layer) else {
            return Err(Error::value(
                "layer",
                format!("got {layer}, expected less than {}", self.blocks.len()),
            ));
        };
        self.config.check_length(seq, "x", &format!("got sequence length {seq}"))?;
        for (got, expected, argument) in [
            (x.len(), batch * seq * hidden, "x"),
            (mask.map_or(batch * seq * seq, <[R]>::len), batch * seq * seq, "attention_mask"),
        ] {
            if got != expected {
                return Err(Error::value(argument, format!("got {got} values, expected {expected}")));
            }
        }
        if training.is_some() {
            self.check_dropout()?;
        }
        let mut out = alloc_zeroed(batch * seq * hidden);
        if batch > 0 {
            let attention_mask = AttentionMask::by_query(mask, self.position_biases(context, seq));
            let pass = self.pass(context, (batch, seq), training, false, &attention_mask);
            block.forward(&pass, &self.activation, x, seq, &mut out)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outputs::RequestedOutputs;
    use super::super::testing::{BATCH, SEQ, config, encoder, inputs, values, with_context};

    #[test]
    fn blocks_one_by_one_are_the_encoder() {
        let network = encoder::<f64>(config());
        let inputs = inputs();
        let requested = RequestedOutputs { encoder_outputs: true, ..RequestedOutputs::default() };
        let outputs = with_context(|context| network.forward(context, &inputs.view(), None, requested));
        let mask: Vec<f64> = inputs
            .mask
            .iter()
            .flat_map(|mask| mask.chunks_exact(SEQ))
            .flat_map(|keys| std::iter::repeat_n(keys, SEQ).flatten().copied())
            .collect();
        let last = outputs.sequence_output.as_deref().unwrap();
        for layer in 1..3 {
            let expected = outputs.encoder_outputs.get(layer).map_or(last, Vec::as_slice);
            let x = &outputs.encoder_outputs[layer - 1];
            let run = |mask| {
                with_context(|context| network.block_forward(context, layer, x, (BATCH, SEQ), mask, None))
            };
            assert_eq!(run(Some(&mask[..])), expected, "block {layer}");
            assert_eq!(run(None) == expected, layer == 1, "only attention sees the mask");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let network = encoder::<f64>(config());
        let x = values(1, BATCH * SEQ * network.config.hidden_size);
        with_context(|context| {
            for (layer, len, seq, mask, named) in [
                (3, x.len(), SEQ, None, "layer"),
                (0, x.len() - 1, SEQ, None, "x"),
                (0, x.len(), SEQ - 1, None, "x"),
                (0, x.len(), SEQ, Some(&x[..1]), "attention_mask"),
            ] {
                let result = network.block_forward(context, layer, &x[..len], (BATCH, seq), mask, None);
                assert!(result.unwrap_err().to_string().starts_with(named), "{named}");
            }
            Ok(())
        });
    }
}
