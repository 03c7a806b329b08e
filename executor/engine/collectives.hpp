#pragma once

// The verbs that go over a transport.

#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "core/plan_file.hpp"
#include "executor/comm/transport.hpp"
#include "executor/engine/moves.hpp"

namespace shardwright {

/// Carries out one rank's collectives. Means: sums divided by the ranks of the group.
class Collectives {
public:
    /// Joins every group of the schedule: collective over all ranks.
    Collectives(const ExecutablePlan& plan, Buffers& buffers, Recorder& recorder, Transport& transport);

    void run(const Op& op, const Action& action, std::span<const BufferId> reads, std::span<const BufferId> writes);

private:
    Communicator& of(GroupId group) const { return *m_communicators[static_cast<std::size_t>(group)]; }
    void allGather(const Op& op, Communicator& group, BufferId part, BufferId all);
    void reduceScatter(const Op& op, Communicator& group, BufferId all, BufferId part);
    /// Part of several buffers in one call: those tensors that `content` names.
    void reduceScatterContent(const Op& op, Communicator& group, ContentId content, std::span<const BufferId> writes);
    void allReduce(const Op& op, Communicator& group, BufferId buffer);
    void allReduceContent(const Op& op, Communicator& group, ContentId content, std::span<const BufferId> writes);
    void reduceTo(const Op& op, Communicator& group, ContentId content, std::span<const BufferId> writes);
    void record(const Op& op, const Communicator& group, Bytes payload);
    bool isPartOf(BufferId part, BufferId all, const Communicator& group) const;
    /// The part holds more tensors than the write, or the write holds them in another order: through a copy.
    void gatherTensors(const Op& op, Communicator& group, BufferId part, BufferId all);
    /// Elements that lie in a buffer, without its room.
    std::int64_t filled(BufferId buffer) const;
    Bytes filledBytes(BufferId buffer) const;

    /// Where the elements of one part of a content stand in a buffer (`to`), and in the part (`from`).
    const std::vector<Run>& runsOfPart(ContentId content, std::int64_t part, BufferId buffer);
    /// One after another in m_scratch what `writes` hold of a part; its elements.
    std::int64_t flatten(ContentId content, std::int64_t part, std::span<const BufferId> writes, DType dtype);
    void unflatten(ContentId content, std::int64_t part, std::span<const BufferId> writes, DType dtype);

    const Schedule& m_schedule;
    Buffers& m_buffers;
    Recorder& m_recorder;
    std::vector<std::unique_ptr<Communicator>> m_communicators; // by GroupId
    std::vector<NamedParameter> m_parameters;
    std::map<std::tuple<ContentId, std::int64_t, int>, std::vector<Run>>
        m_partRuns; // by content, part, buffer's content
    std::vector<std::byte> m_scratch;
};

} // namespace shardwright
