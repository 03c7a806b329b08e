#pragma once

// Move and Add between any two buffers, and the first values of buffers.

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "executor/engine/buffers.hpp"
#include "executor/engine/recorder.hpp"
#include "executor/state/sources.hpp"

namespace shardwright {

/// Not thread-safe.
class Mover {
public:
    Mover(Buffers& buffers, Recorder& recorder) : m_buffers(buffers), m_recorder(recorder) {}

    void move(std::span<const BufferId> reads, std::span<const BufferId> writes, bool add);
    /// The initial weights where the buffer holds parameters, zeros elsewhere.
    void initialize(BufferId buffer, const WeightSource& weights);

    /// What `from` and `to`, two buffers with contents, have in common; worked out once.
    const std::vector<Run>& runs(BufferId from, BufferId to);

private:
    void copyBytes(BufferId from, BufferId to, bool add);
    void copyElements(BufferId from, BufferId to, bool add);
    void countMoved(BufferId from, BufferId to, std::int64_t elements);

    Buffers& m_buffers;
    Recorder& m_recorder;
    std::map<std::pair<int, int>, std::vector<Run>> m_runs; // by contents
};

/// A buffer's elements where arithmetic can reach them: its own memory, or a copy of what is in a file or encoded.
class OpenBuffer {
public:
    enum class Use : std::uint8_t { Read, Overwrite, Change };
    /// Overwrite: every element that is not padding will be written.
    OpenBuffer(Buffers& buffers, BufferId buffer, Use use);
    std::byte* data() const { return m_data; }
    DType dtype() const { return m_dtype; }
    /// Takes back what was written, into the file or the code.
    void close();

private:
    Buffers& m_buffers;
    BufferId m_buffer;
    Use m_use;
    std::byte* m_data = nullptr;
    DType m_dtype = DType::Fp32;
    /// Calls `visit` with each stretch that is encoded by itself, its code and its values.
    template <typename Each> void forEachStretch(const Each& visit);
    /// The mean, where there are several versions.
    void decodeAll();

    std::vector<std::byte> m_file;
    std::byte* m_encoded = nullptr;
    std::vector<float> m_decoded;
};

} // namespace shardwright
