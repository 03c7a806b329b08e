#pragma once

// What the schedules of all ZeRO stages are written with.

#include <vector>

#include "planner/frameworks/deepspeed/recording.hpp"

namespace shardwright {

class ZeroEmission : public StageObserver {
protected:
    using Buffers = std::vector<BufferId>;
    using Tensors = std::vector<std::int32_t>;

    ZeroEmission(const SizeTable& sizes, Recording recording, const ActivationModel& activations)
        : m_builder(sizes, recording), m_record(m_builder), m_walk(activations)
    {
    }

    void drop(BufferId& buffer)
    {
        if (buffer >= 0)
            m_builder.free(buffer);
        buffer = -1;
    }

    OpId copy(OpKind kind, Stream stream, Phase phase, PayloadId payload)
    {
        const OpId id = m_builder.op(kind, stream, phase, m_layer);
        m_builder.move(payload);
        return id;
    }

    /// The host waits for `op` here: a copy from or to memory that is not page-locked, a synchronize(), an item().
    void block(OpId op, Phase phase)
    {
        m_builder.op(OpKind::Release, Stream::Compute, phase, m_layer);
        m_builder.blockHost(op);
    }

    ScheduleBuilder m_builder;
    ContentRecorder m_record;
    ActivationWalk m_walk;
    int m_layer = -1; // whose work is being written
};

} // namespace shardwright
