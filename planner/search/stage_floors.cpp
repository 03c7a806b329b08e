#include "planner/search/stage_floors.hpp"

#include <algorithm>
#include <bit>

#include "planner/costs/op_costs.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/parallelism/local_shape.hpp"
#include "planner/parallelism/pipeline_time.hpp"

namespace shardwright::search {

namespace {

constexpr std::size_t kMostKnown = 200000; // floors, some hundred bytes each

std::size_t typeOf(const Model& model, std::size_t layer)
{
    return static_cast<std::size_t>(model.layers[layer]);
}

/// Which layers of a part of a model are checkpointed, as ActivationModel counts them: every so many blocks.
class CheckpointedLayers {
public:
    CheckpointedLayers(const Model& model, const Training& training)
        : m_model(model), m_on(training.checkpointing != Checkpointing::None), m_every(training.checkpointEvery),
          m_segment(training.checkpointSegment)
    {
        for (std::size_t layer = 0; layer < model.layers.size(); ++layer)
            if (model.layer(layer).kind == LayerKind::Embedding)
                m_embedding = static_cast<int>(layer);
    }
    bool has(std::size_t layer) const
    {
        return m_on && m_model.layer(layer).kind == LayerKind::Block &&
               (static_cast<int>(layer) - m_embedding - 1) % m_every == 0;
    }
    /// Whether the checkpoint of this layer begins before it, so that its input is made again.
    bool isWithinSegment(std::size_t layer) const
    {
        return has(layer) && m_segment > 1 && (static_cast<int>(layer) - m_embedding - 1) % m_segment != 0;
    }

private:
    const Model& m_model;
    const bool m_on;
    const int m_every;
    const int m_segment;
    int m_embedding = -1;
};

StepLoad times(const StepLoad& load, std::int64_t count)
{
    const auto factor = static_cast<double>(count);
    return {factor * load.computeStream, factor * load.kernels, factor * load.collectives};
}

void addTo(StepLoad& load, const StepLoad& more)
{
    load.computeStream += more.computeStream;
    load.kernels += more.kernels;
    load.collectives += more.collectives;
}

/// A step of a pipeline whose stages have these passes and at least these loads, which hold all collectives beside
/// their computing.
///
/// A stage's own schedule takes T, its passes in the pipeline x, and the step max(e, x) + max(0, T - x) + lost(T) at
/// least, where e is when the stage can be done with its passes at the earliest. That is at least e' + lost(e') for any
/// e' up to max(e, T), since T + lost(T) never falls when T grows; and lost() never falls when there is more computing.
double pipelineFloor(const Cluster& cluster, const std::vector<StageSeconds>& kinds, const std::vector<StepLoad>& loads,
                     const std::vector<std::size_t>& kindOf, double transfer)
{
    const StepLoad& first = loads[kindOf.front()];
    double floor = 0;
    double ahead = 0; // first chunks of the stages before, forward
    double back = 0;  // and backward
    for (const std::size_t kind : kindOf) {
        const StepLoad& load = loads[kind];
        const double ends = ahead + load.computeStream;
        // The first stage ends last.
        floor = std::max({floor, ends + lostBesideCollectives(cluster, load, load.computeStream),
                          ends + back + lostBesideCollectives(cluster, first, ends + back)});
        ahead += kinds[kind].forward.front() + transfer;
        back += kinds[kind].backward.front() + transfer;
    }
    return floor;
}

} // namespace

/// A checkpoint of several blocks recomputes at least what checkpoints of them would, and forward passes are the same.
Training ofSingleBlocks(Training training)
{
    training.checkpointSegment = 1;
    return training;
}

/// A micro-batch's walk through one layer of each kind that a part of the model has.
class FloorTable::Walked {
public:
    explicit Walked(const PlanInput& part)
        : m_activations(part.model, ofSingleBlocks(part.training), computeDtype(part.training.precision),
                        {false, localShape(part)})
    {
        choose(part);
        SizeTable sizes;
        m_activations.defineSizes(sizes, part.training);
        ScheduleBuilder builder(std::move(sizes));
        builder.beginSegment("micro-step");
        walk(builder);
        m_schedule = builder.finish();
    }

    /// The walk's figures at the micro-batch of `part`.
    void measure(const PlanInput& part, Layers& layers) const
    {
        SizeTable sizes;
        m_activations.defineSizes(sizes, part.training);
        const OpCosts costs(part, m_activations, sizes);
        for (const Kind& kind : m_kinds)
            layers.of[kind.type][kind.checkpointed ? 1 : 0] =
                timed(kind.forward, kind.backward, costs, keptBy(kind.forward, sizes), inputOf(kind, sizes));
        if (m_lossForward.end > 0)
            layers.loss = timed(m_lossForward, m_lossBackward, costs, 0, 0);
        if (m_sent < 0)
            return;
        const Op& send = m_schedule.ops[static_cast<std::size_t>(m_sent)];
        layers.boundary = keptBy({static_cast<std::uint32_t>(m_sent), static_cast<std::uint32_t>(m_sent) + 1}, sizes);
        layers.sent = sizes.payloads[static_cast<std::size_t>(send.payload)].bytes;
    }

private:
    struct Ops {
        std::uint32_t first = 0;
        std::uint32_t end = 0;
    };
    struct Kind {
        std::size_t type;
        bool checkpointed;
        int layer; // the one that is walked through
        Ops forward;
        Ops backward;
    };

    void choose(const PlanInput& part)
    {
        for (std::size_t layer = 0; layer < part.model.layers.size(); ++layer) {
            const std::size_t type = typeOf(part.model, layer);
            const bool checkpointed = m_activations.checkpointed(static_cast<int>(layer));
            const auto isOf = [&](const Kind& kind) { return kind.type == type && kind.checkpointed == checkpointed; };
            if (std::any_of(m_kinds.begin(), m_kinds.end(), isOf))
                continue;
            m_kinds.push_back({type, checkpointed, static_cast<int>(layer), {}, {}});
            m_begins |= part.model.layer(layer).kind == LayerKind::Embedding;
            m_ends |= part.model.layer(layer).kind == LayerKind::Head;
        }
    }

    void walk(ScheduleBuilder& builder)
    {
        ActivationWalk walk(m_activations);
        StageObserver nobody;
        const auto during = [&](const auto& emit) {
            const auto first = static_cast<std::uint32_t>(builder.lastOp() + 1);
            emit();
            return Ops{first, static_cast<std::uint32_t>(builder.lastOp() + 1)};
        };
        walk.beginMicroStep(builder);
        if (!m_begins)
            walk.receiveInput(builder);
        for (Kind& kind : m_kinds)
            kind.forward = during([&] { walk.forward(builder, kind.layer, nobody); });
        if (m_ends) {
            m_lossForward = during([&] { walk.lossForward(builder); });
            m_lossBackward = during([&] { walk.lossBackward(builder); });
        } else {
            walk.sendOutput(builder);
            m_sent = builder.lastOp();
            walk.receiveGradient(builder);
        }
        for (auto kind = m_kinds.rbegin(); kind != m_kinds.rend(); ++kind)
            kind->backward = during([&] { walk.backward(builder, kind->layer, nobody); });
    }

    Layer timed(const Ops& forward, const Ops& backward, const OpCosts& costs, std::int64_t kept,
                std::int64_t input) const
    {
        const StepLoad ahead = loadOf(forward, costs);
        const StepLoad back = loadOf(backward, costs);
        Layer layer{ahead.computeStream, back.computeStream, ahead, kept, input, true};
        addTo(layer.load, back);
        return layer;
    }

    StepLoad loadOf(const Ops& ops, const OpCosts& costs) const
    {
        StepLoad load;
        for (std::uint32_t i = ops.first; i < ops.end; ++i)
            load.add(m_schedule.ops[i], costs.seconds(m_schedule.ops[i]));
        return load;
    }

    std::int64_t inputOf(const Kind& kind, const SizeTable& sizes) const
    {
        const BufferClassId id = m_activations.program(kind.layer).classOf(kInput);
        return id < 0 ? 0 : sizes.buffers[static_cast<std::size_t>(id)].bytes.count();
    }

    std::int64_t keptBy(const Ops& ops, const SizeTable& sizes) const
    {
        std::int64_t kept = 0;
        for (std::uint32_t i = ops.first; i < ops.end; ++i) {
            const Op& op = m_schedule.ops[i];
            for (std::uint32_t e = op.firstEvent; e < op.firstEvent + op.eventCount; ++e) {
                const BufferEvent& event = m_schedule.events[e];
                if (event.buffer < 0)
                    continue;
                const auto id = static_cast<std::size_t>(m_schedule.buffers[static_cast<std::size_t>(event.buffer)]);
                const BufferClass& of = sizes.buffers[id];
                if (of.spec->place != Place::Gpu)
                    continue;
                kept = event.change == BufferChange::Allocate ? checkedAdd(kept, of.bytes.count())
                                                              : checkedSubtract(kept, of.bytes.count());
            }
        }
        return kept;
    }

    ActivationModel m_activations;
    Schedule m_schedule;
    std::vector<Kind> m_kinds;
    Ops m_lossForward, m_lossBackward;
    OpId m_sent = -1;      // what goes to the next stage
    bool m_begins = false; // has the embedding
    bool m_ends = false;   // has the head
};

/// One slice's passes.
struct FloorTable::Sums {
    StageSeconds seconds;
    StepLoad load;                  // of one micro-batch
    std::vector<std::int64_t> kept; // by chunk
};

FloorTable::FloorTable() = default;
FloorTable::~FloorTable() = default;

std::size_t FloorTable::Hash::operator()(const Key& key) const
{
    std::uint64_t hash = 0;
    for (const std::int64_t value : key) { // splitmix64's finaliser over all values
        hash = (hash ^ static_cast<std::uint64_t>(value)) + 0x9e3779b97f4a7c15U;
        hash = (hash ^ (hash >> 30U)) * 0xbf58476d1ce4e5b9U;
        hash = (hash ^ (hash >> 27U)) * 0x94d049bb133111ebU;
    }
    return static_cast<std::size_t>(hash ^ (hash >> 31U));
}

const StageFloors& FloorTable::of(const PlanInput& input, const std::vector<ModelSlice>* slices,
                                  const StepCollectives& collectives)
{
    const Training& training = input.training;
    const Parallelism& p = input.strategy.parallelism;
    const Key key{slices == nullptr ? -1 : static_cast<std::int64_t>(input.strategy.options.index()),
                  input.cluster.gpus(),
                  p.tensor,
                  p.sequenceParallel,
                  localShape(input).overlapsProducts,
                  p.context,
                  static_cast<std::int64_t>(p.exchange),
                  p.expert,
                  p.expertTensor,
                  std::bit_cast<std::int64_t>(p.expertImbalance),
                  static_cast<std::int64_t>(training.checkpointing),
                  training.checkpointEvery,
                  p.pipeline > 1,
                  training.microBatch,
                  training.sequenceLength,
                  training.gradientAccumulation,
                  p.pipeline,
                  p.virtualStages,
                  training.checkpointSegment,
                  collectives.strategy};
    const auto known = m_known.find(key);
    if (known != m_known.end())
        return known->second;
    if (m_known.size() >= kMostKnown)
        m_known.clear();
    return m_known.emplace(key, workOut(input, slices, collectives, key)).first->second;
}

/// Makes sure that every layer of `part` is known.
void FloorTable::measure(const PlanInput& part, Walks& walks, Layers& layers)
{
    layers.of.resize(part.model.layerTypes.size());
    const CheckpointedLayers checkpointed(part.model, part.training);
    const auto missing = [&] {
        for (std::size_t layer = 0; layer < part.model.layers.size(); ++layer)
            if (!layers.of[typeOf(part.model, layer)][checkpointed.has(layer) ? 1 : 0].known)
                return true;
        return false;
    };
    for (std::size_t i = 0; missing(); ++i) {
        if (i == walks.size())
            walks.push_back(std::make_unique<Walked>(part));
        walks[i]->measure(part, layers);
    }
}

FloorTable::Sums FloorTable::sum(const PlanInput& part, const Layers& layers)
{
    const std::size_t chunks = part.slice == nullptr ? 1 : part.slice->chunks.size();
    Sums sums{
        {std::vector<double>(chunks, 0), std::vector<double>(chunks, 0), 0}, {}, std::vector<std::int64_t>(chunks, 0)};
    const CheckpointedLayers checkpointed(part.model, part.training);
    std::size_t chunk = 0;
    const auto add = [&](const Layer& layer) {
        sums.seconds.forward[chunk] += layer.forward;
        sums.seconds.backward[chunk] += layer.backward;
        addTo(sums.load, layer.load);
        sums.kept[chunk] = checkedAdd(sums.kept[chunk], layer.kept);
    };
    for (std::size_t layer = 0; layer < part.model.layers.size(); ++layer) {
        while (chunk + 1 < chunks && static_cast<int>(layer) >= part.slice->chunks[chunk].end)
            ++chunk;
        const Layer& of = layers.of[typeOf(part.model, layer)][checkpointed.has(layer) ? 1 : 0];
        add(of);
        if (checkpointed.isWithinSegment(layer))
            sums.kept[chunk] = checkedSubtract(sums.kept[chunk], of.input);
        if (part.model.layer(layer).kind == LayerKind::Head)
            add(layers.loss);
    }
    for (chunk = 0; part.slice != nullptr && chunk < chunks; ++chunk) {
        const StageChunk& of = part.slice->chunks[chunk];
        if (of.receivesInput)
            sums.kept[chunk] = checkedSubtract(sums.kept[chunk], layers.boundary);
        if (of.sendsOutput)
            sums.kept[chunk] = checkedAdd(sums.kept[chunk], layers.boundary);
    }
    return sums;
}

StageFloors FloorTable::workOut(const PlanInput& input, const std::vector<ModelSlice>* slices,
                                const StepCollectives& collectives, const Key& key)
{
    constexpr std::size_t kOfWalks = 13; // values of the key that a walk's structure depends on, the first ones
    constexpr std::size_t kOfLayers = 15;
    Key ofWalks{};
    std::copy_n(key.begin(), kOfWalks, ofWalks.begin());
    Key ofLayers{};
    std::copy_n(key.begin(), kOfLayers, ofLayers.begin());
    Walks& walks = m_walks[ofWalks];
    Layers& layers = m_layers[ofLayers];
    const PipelineShape shape = pipelineShape(input.strategy.parallelism, input.training.gradientAccumulation);
    StageFloors floors;
    if (slices == nullptr) {
        measure(input, walks, layers);
        const Sums whole = sum(input, layers);
        floors.loads = {times(whole.load, shape.microBatches)};
        floors.seconds = floors.loads.front().computeStream;
        floors.kept = whole.kept;
        return floors;
    }
    // A checkpoint of several blocks may send more than what was measured of single ones.
    const bool collectivesKnown = collectives.strategy >= 0 && input.training.checkpointSegment == 1;
    std::vector<StageSeconds> kinds;
    std::vector<std::size_t> kindOf(static_cast<std::size_t>(shape.stages));
    for (const ModelSlice& slice : *slices) {
        const PlanInput part = inputOf(input, slice);
        measure(part, walks, layers);
        Sums sums = sum(part, layers);
        const std::vector<std::int64_t> passes = passesBeforeBackward(shape, slice.stage);
        std::int64_t kept = 0;
        for (std::size_t chunk = 0; chunk < passes.size(); ++chunk)
            kept = checkedAdd(kept, checkedMultiply(passes[chunk], sums.kept[chunk]));
        floors.kept.push_back(kept);
        for (const std::int64_t stage : slice.alike)
            kindOf[static_cast<std::size_t>(stage)] = kinds.size();
        floors.loads.push_back(times(sums.load, shape.microBatches));
        if (collectives.strategy >= 0)
            floors.loads.back().collectives += collectives.seconds[kinds.size()];
        kinds.push_back(std::move(sums.seconds));
    }
    if (shape.stages == 1) {
        const StepLoad& load = floors.loads.front();
        floors.seconds = load.computeStream;
        if (collectivesKnown)
            floors.seconds += lostBesideCollectives(input.cluster, load, load.computeStream);
        return floors;
    }
    const double transfer =
        CollectiveCosts(input.cluster).seconds(OpKind::Send, layers.sent, localShape(input).pipelineGroup);
    floors.seconds = pipelineBound(shape, kinds, kindOf, transfer);
    if (collectivesKnown)
        floors.seconds = std::max(floors.seconds, pipelineFloor(input.cluster, kinds, floors.loads, kindOf, transfer));
    return floors;
}

} // namespace shardwright::search
