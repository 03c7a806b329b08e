#pragma once

// Where first weights and batches come from.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/model.hpp"

namespace shardwright {

/// Elements of the model's parameters, by index into listParameters(model).
class WeightSource {
public:
    virtual ~WeightSource() = default;
    /// Elements [first, first + count) of a tensor. The same whatever the ranks and the order of calls.
    virtual void read(std::int32_t tensor, std::int64_t first, std::int64_t count, float* to) const = 0;
    /// Names of tensors that are there and that the model does not have.
    virtual std::vector<std::string> unused() const { return {}; }
};

/// Seeded: normal with the config's initializer_range, residual projections of GPT-2 scaled by 1 / sqrt(2 L) as its
/// authors do; norms 1, biases 0.
std::unique_ptr<WeightSource> seededWeights(const Model& model, std::uint64_t seed);
/// A safetensors file, or a folder of them with its index, with Hugging Face names. InputError names what is missing,
/// of another shape, or broken.
std::unique_ptr<WeightSource> safetensorsWeights(const Model& model, const std::string& path);

/// Sequences by their number in the run: whatever the ranks, sequence i is the same.
class BatchSource {
public:
    virtual ~BatchSource() = default;
    /// `length` tokens of sequence `index` and, behind each, the token that follows it.
    virtual void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const = 0;
};

/// Seeded tokens with something to learn: a Markov chain over the vocabulary.
std::unique_ptr<BatchSource> syntheticTokens(std::int64_t vocab, std::uint64_t seed);
/// The bytes of a text file of any size as tokens. InputError where it has no `sequence` + 1 of them or vocab < 256;
/// EnvironmentError from read() where the file cannot be read any more.
std::unique_ptr<BatchSource> textBytes(const std::string& path, std::int64_t vocab, std::int64_t sequence);

} // namespace shardwright
