#include "executor/engine/saved_state.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include <fmt/format.h>

#include "executor/elements.hpp"
#include "executor/engine/moves.hpp"

namespace shardwright {

namespace {

bool keepsState(Category category)
{
    return category == Category::Parameters || category == Category::MasterParameters ||
           category == Category::OptimizerStates;
}

/// Live buffers with state, and how exact a copy each is.
struct StateBuffer {
    BufferId buffer = -1;
    const Held* held = nullptr;
    std::tuple<std::int64_t, bool> exactness; // bits of an element; whether it is what the optimizer steps
};

std::vector<StateBuffer> stateBuffers(const Buffers& buffers)
{
    std::vector<StateBuffer> found;
    for (const BufferId buffer : buffers.liveIds()) {
        const Held* held = buffers.held(buffer);
        const Category category = buffers.classOf(buffer).spec->category;
        if (held == nullptr || held->content.quantity == Quantity::Gradients || held->content.codec != Codec::None ||
            !keepsState(category))
            continue;
        found.push_back({buffer, held, {bitsOf(held->content.dtype), category == Category::MasterParameters}});
    }
    return found;
}

bool names(const Held& held, std::int32_t tensor)
{
    const std::vector<std::int32_t>& tensors = held.content.layout.tensors;
    return std::find(tensors.begin(), tensors.end(), tensor) != tensors.end();
}

/// Whether no other buffer holds a more exact copy of the tensor, on this rank or, cut the same way, on another.
bool isMostExact(const StateBuffer& candidate, std::int32_t tensor, const std::vector<StateBuffer>& all)
{
    return std::none_of(all.begin(), all.end(), [&](const StateBuffer& other) {
        return other.held->content.quantity == candidate.held->content.quantity &&
               other.exactness > candidate.exactness && names(*other.held, tensor);
    });
}

/// Ranks beside this one hold the same part; the lowest of them writes it.
bool isMine(const Content& content, const Schedule& schedule, std::int64_t rank)
{
    if (content.group < 0)
        return rank == 0;
    return schedule.sizes.groups[static_cast<std::size_t>(content.group)].firstRank(rank) == 0;
}

TensorView viewOf(std::byte* data, DType dtype, std::int64_t at, std::int64_t count)
{
    return {data + bytesOf(at, dtype).count(), count, dtype};
}

/// All of a rank's error feedback of one tensor.
StatePiece errorPiece(const Held& held, std::int64_t rank, std::int64_t ranks, std::byte* data)
{
    const Content& content = held.content;
    const int whose = content.group < 0 ? 0 : 1; // the worker's is not cut
    return {Quantity::Error,
            whose,
            content.layout.tensors.front(),
            rank * held.elements,
            held.elements,
            viewOf(data, content.dtype, 0, held.elements),
            true,
            ranks};
}

/// One tensor's elements as some rank knows them.
struct Gathered {
    std::vector<float> values;
    std::vector<std::uint8_t> known;
};

Gathered ownElements(const TrainingState& saved, Quantity quantity, int moment, std::int32_t tensor, std::int64_t numel)
{
    Gathered own{std::vector<float>(static_cast<std::size_t>(numel)),
                 std::vector<std::uint8_t>(static_cast<std::size_t>(numel))};
    for (const StatePiece& piece : saved.pieces) {
        if (piece.quantity != quantity || piece.moment != moment || piece.tensor != tensor)
            continue;
        convertElements(piece.values.data, piece.values.dtype, own.values.data() + piece.first, DType::Fp32,
                        piece.count);
        std::fill_n(own.known.begin() + piece.first, piece.count, std::uint8_t{1});
    }
    return own;
}

/// Of all ranks; what several know is taken from the lowest, so that every rank has the same bits.
Gathered fromAllRanks(const Gathered& own, Communicator& world)
{
    const std::size_t count = own.values.size();
    const auto ranks = static_cast<std::size_t>(world.size());
    std::vector<float> values(count * ranks);
    std::vector<std::uint8_t> known(count * ranks);
    world.allGather(own.values.data(), values.data(), static_cast<std::int64_t>(count * sizeof(float)));
    world.allGather(own.known.data(), known.data(), static_cast<std::int64_t>(count));
    Gathered all = own;
    for (std::size_t i = 0; i < count; ++i)
        for (std::size_t rank = 0; rank < ranks; ++rank)
            if (known[rank * count + i] != 0) {
                all.values[i] = values[rank * count + i];
                all.known[i] = 1;
                break;
            }
    return all;
}

class Restoring {
public:
    Restoring(const TrainingState& saved, Buffers& buffers, const ExecutablePlan& plan, Transport& transport)
        : m_saved(saved), m_buffers(buffers), m_parameters(listParameters(plan.model)), m_state(stateBuffers(buffers)),
          m_world(transport.communicator({"world", transport.ranks(), 1, 1}))
    {
    }

    void run()
    {
        for (const StateBuffer& each : m_state)
            m_open.emplace_back(m_buffers, each.buffer, OpenBuffer::Use::Change);
        for (std::size_t tensor = 0; tensor < m_parameters.size(); ++tensor)
            for (const auto& [quantity, moments] :
                 {std::pair(Quantity::Parameters, 1), std::pair(Quantity::Moments, 2)})
                for (int moment = 0; moment < moments; ++moment)
                    restore(quantity, moment, static_cast<std::int32_t>(tensor));
        for (std::size_t i = 0; i < m_open.size(); ++i) {
            m_open[i].close();
            m_buffers.touch(m_state[i].buffer);
        }
    }

private:
    void restore(Quantity quantity, int moment, std::int32_t tensor)
    {
        const NamedParameter& parameter = m_parameters[static_cast<std::size_t>(tensor)];
        std::vector<std::size_t> holders;
        bool derived = false; // some copy may be of more elements than this rank's pieces
        for (std::size_t i = 0; i < m_state.size(); ++i)
            if (m_state[i].held->content.quantity == quantity && names(*m_state[i].held, tensor)) {
                holders.push_back(i);
                derived = derived || !isMostExact(m_state[i], tensor, m_state);
            }
        if (holders.empty())
            return;
        Gathered elements = ownElements(m_saved, quantity, moment, tensor, parameter.numel);
        if (derived)
            elements = fromAllRanks(elements, *m_world);
        for (const std::size_t i : holders)
            for (const Piece& piece : m_state[i].held->pieces) {
                if (piece.tensor != tensor || piece.moment != moment)
                    continue;
                const auto first = elements.known.begin() + piece.first;
                if (std::find(first, first + piece.count, std::uint8_t{0}) != first + piece.count)
                    throw InputError("checkpoint", parameter.name,
                                     fmt::format("{} of elements {} to {} are missing", nameOf(quantity), piece.first,
                                                 piece.first + piece.count));
                convertElements(elements.values.data() + piece.first, DType::Fp32,
                                m_open[i].data() + bytesOf(piece.at, m_open[i].dtype()).count(), m_open[i].dtype(),
                                piece.count);
            }
    }

    const TrainingState& m_saved;
    Buffers& m_buffers;
    std::vector<NamedParameter> m_parameters;
    std::vector<StateBuffer> m_state;
    std::vector<OpenBuffer> m_open;
    std::unique_ptr<Communicator> m_world;
};

} // namespace

TrainingState savedState(Buffers& buffers, const ExecutablePlan& plan, std::int64_t rank, std::int64_t step,
                         std::vector<std::vector<std::byte>>& staged)
{
    TrainingState state;
    state.step = step;
    staged.clear();
    const std::vector<StateBuffer> all = stateBuffers(buffers);
    for (const StateBuffer& each : all) {
        std::byte* data = nullptr;
        if (buffers.inMemory(each.buffer)) {
            data = buffers.data(each.buffer);
        } else {
            staged.emplace_back(static_cast<std::size_t>(buffers.shape(each.buffer).bytes.count()));
            data = staged.back().data();
            buffers.readFile(each.buffer, data);
        }
        const Content& content = each.held->content;
        if (content.quantity == Quantity::Error)
            state.pieces.push_back(errorPiece(*each.held, rank, plan.ranks, data));
        else
            for (const Piece& piece : each.held->pieces) {
                if (!isMostExact(each, piece.tensor, all))
                    continue;
                const bool told = std::any_of(state.pieces.begin(), state.pieces.end(), [&](const StatePiece& other) {
                    return other.quantity == content.quantity && other.moment == piece.moment &&
                           other.tensor == piece.tensor && other.first <= piece.first &&
                           other.first + other.count >= piece.first + piece.count;
                });
                if (!told)
                    state.pieces.push_back({content.quantity, piece.moment, piece.tensor, piece.first, piece.count,
                                            viewOf(data, content.dtype, piece.at, piece.count),
                                            isMine(content, plan.schedule, rank)});
            }
    }
    return state;
}

void restoreState(const TrainingState& saved, Buffers& buffers, const ExecutablePlan& plan, Transport& transport)
{
    Restoring(saved, buffers, plan, transport).run();
}

} // namespace shardwright
