//! The sections that time is measured in: a kind of work in a part of the model.

/// An enum whose values have names for tables.
macro_rules! named {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $value:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$doc])* $value,)+ }

        impl $type {
            /// All of them, in the order of their numbers.
            pub const ALL: &[$type] = &[$($type::$value),+];

            /// What tables call it.
            pub fn name(self) -> &'static str {
                match self { $($type::$value => $name,)+ }
            }
        }
    };
}

named! {
    /// A part of the model, or of its backward pass.
    Place {
        /// None of the others.
        Elsewhere = "elsewhere",
        /// Look-ups, their sum, the projection; both directions.
        Embeddings = "embeddings",
        /// What mixing needs of all tokens.
        MixingPrepare = "mixing, prepare",
        /// Mixing of a block of rows.
        MixingRows = "mixing, rows",
        /// Keys and values of all tokens.
        AttentionPrepare = "attention, prepare",
        /// Attention of a block of rows.
        AttentionRows = "attention, rows",
        /// `a = x W1 + b1` and its activation.
        FeedForward = "feed-forward, W1",
        /// `a W2 + b2`
        FeedForwardOutput = "feed-forward, W2",
        /// The first product of experts and its activation.
        Mixture = "mixture, W1",
        /// The second product of experts.
        MixtureOutput = "mixture, W2",
        /// Logits and the choice of experts; both directions.
        Router = "router",
        /// The first token's dense layer; both directions.
        Pooler = "pooler",
        /// What a model computes of the encoder's outputs; both directions.
        Head = "head",
        /// Backward of the feed-forward layer to its input.
        FeedForwardBackward = "backward, feed-forward",
        /// The same of experts.
        MixtureBackward = "backward, mixture",
        /// Backward of mixing to its input.
        MixingBackward = "backward, mixing",
        /// The same of attention, whose weights are computed again.
        AttentionBackward = "backward, attention",
        /// Gradients of kernels.
        KernelGradient = "backward, dW",
    }
}

named! {
    /// A kind of work.
    Work {
        /// None of the others.
        Other = "everything else",
        /// Products of matrices.
        Product = "products",
        /// Activation functions, and the conversion of their values where that is one pass.
        Activation = "activation",
        /// Attention weights and their masks.
        Softmax = "softmax, mask",
        /// Layer norms.
        Norm = "layer norms",
        /// Residual sums, and tokens gathered and scattered.
        Residual = "residual, gather",
        /// Left operands of products, rounded.
        Conversion = "conversion of left operands",
        /// Right operands of products, from activations.
        Packing = "packing",
        /// Activations and their gradients, transposed.
        Transpose = "transposed activations",
        /// Weights transposed, for `dX = dY W^T`.
        WeightTranspose = "transposed weights",
        /// Heads and columns copied.
        Copy = "copies of heads and columns",
        /// Random numbers and what they drop.
        Dropout = "dropout",
        /// Gradients of biases.
        BiasSum = "bias sums",
        /// The optimiser: weights that have changed elsewhere.
        Adopt = "optimiser, adopt",
        /// The optimiser's rule, and new weights in their storage type.
        Update = "optimiser, update",
        /// Threads without a task while others have one.
        Waiting = "waiting",
    }
}
