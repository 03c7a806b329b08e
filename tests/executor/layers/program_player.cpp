#include "tests/executor/layers/program_player.hpp"

#include <cstring>

#include <fmt/format.h>

#include "executor/elements.hpp"
#include "executor/layers/device.hpp"

namespace shardwright {

namespace {

struct Memory {
    std::vector<std::byte> bytes;
    DType dtype = DType::Fp32;
    TensorView view() { return {bytes.data(), static_cast<std::int64_t>(bytes.size()) * 8 / bitsOf(dtype), dtype}; }
};

/// Makes a buffer for each module's gradients, when its kernel asks for it.
class GradientKeeper : public StageObserver {
public:
    struct Entry {
        int layer, module;
        BufferId buffer;
    };
    GradientKeeper(ScheduleBuilder& builder, BufferClassId spec) : m_builder(builder), m_class(spec) {}
    BufferId gradientBuffer(int layer, int module) override
    {
        entries.push_back({layer, module, m_builder.allocate(m_class)});
        return entries.back().buffer;
    }
    std::vector<Entry> entries;

private:
    ScheduleBuilder& m_builder;
    BufferClassId m_class;
};

constexpr BufferSpec kGradientSpec{"gradients of a module", "", "test", Category::Gradients};

class Player {
public:
    Player(const Model& model, const Training& training, const Weights& weights, const Batch& batch, int threads,
           DType gradientType)
        : m_parameters(listParameters(model)), m_batch(batch), m_gradientType(gradientType),
          m_device(makeHostDevice(threads)), m_kernels(model, training, training.gradientAccumulation, *m_device)
    {
        const DType compute = training.precision.mixed.value_or(training.precision.load);
        for (const NamedParameter& parameter : m_parameters) {
            const std::vector<double>& values = weights.at(parameter.name);
            const std::vector<float> single(values.begin(), values.end());
            Memory memory;
            memory.dtype = compute;
            memory.bytes.resize(static_cast<std::size_t>(bytesOf(parameter.numel, compute).count()));
            convertElements(single.data(), DType::Fp32, memory.bytes.data(), compute, parameter.numel);
            m_weights.push_back(std::move(memory));
        }
        record(model, training, compute);
        m_kernels.beginBatch(batch.seed, batch.firstSequence);
        for (const Op& op : m_schedule.ops)
            playOp(op);
        played.loss = m_kernels.takeLoss();
        collectGradients();
    }

    Played played;

private:
    void record(const Model& model, const Training& training, DType compute)
    {
        const ActivationModel activations(model, training, compute);
        SizeTable sizes;
        activations.defineSizes(sizes, training);
        const BufferClassId gradients = sizes.addBuffer(kGradientSpec, Bytes(1));
        ScheduleBuilder builder(sizes, Recording::ForExecution);
        ActivationWalk walk(activations);
        GradientKeeper keeper(builder, gradients);
        const int layers = static_cast<int>(model.layers.size());
        builder.beginSegment("micro-step");
        walk.beginMicroStep(builder);
        for (int layer = 0; layer < layers; ++layer)
            walk.forward(builder, layer, keeper);
        walk.loss(builder, keeper);
        for (int layer = layers; layer-- > 0;)
            walk.backward(builder, layer, keeper);
        walk.endMicroStep(builder);
        m_schedule = builder.finish();
        m_gradients = keeper.entries;
    }

    void playOp(const Op& op)
    {
        std::uint32_t action = op.firstAction;
        for (std::uint32_t event = 0; event <= op.eventCount; ++event) {
            for (; action < op.firstAction + op.actionCount && m_schedule.actions[action].eventsBefore <= event;
                 ++action)
                act(m_schedule.actions[action]);
            if (event == op.eventCount)
                break;
            const BufferEvent& change = m_schedule.events[op.firstEvent + event];
            if (change.change == BufferChange::Free && !isGradient(change.buffer))
                m_memory.erase(change.buffer);
        }
    }

    void act(const Action& action)
    {
        const auto operand = m_schedule.operands.begin() + action.firstOperand;
        const std::vector<BufferId> reads(operand, operand + action.reads);
        const std::vector<BufferId> writes(operand + action.reads, operand + action.reads + action.writes);
        if (action.verb == Verb::LoadBatch) {
            Memory& memory = make(writes[0], {bytesOf(2 * tokens(), DType::Int64), DType::Int64});
            std::copy(m_batch.tokens.begin(), m_batch.tokens.end(), memory.view().as<std::int64_t>());
            std::copy(m_batch.labels.begin(), m_batch.labels.end(), memory.view().as<std::int64_t>() + tokens());
            return;
        }
        if (action.verb == Verb::Move) { // of a checkpoint
            Memory& from = m_memory.at(reads[0]);
            make(writes[0], {Bytes(static_cast<std::int64_t>(from.bytes.size())), from.dtype}).bytes = from.bytes;
            return;
        }
        KernelCall call{action.kernel, action.layer, action.module, {}, {}, {}, {}};
        const auto made = m_kernels.made(action.kernel, action.layer, action.module);
        for (const BufferId id : reads)
            call.reads.push_back(m_memory.at(id).view());
        for (std::size_t i = 0; i < writes.size(); ++i)
            call.writes.push_back(make(writes[i], made.at(i)).view());
        const std::vector<std::int32_t> tensors = m_kernels.tensorsOf(action.layer, action.module);
        for (const std::int32_t tensor : tensors)
            call.weights.push_back(m_weights[static_cast<std::size_t>(tensor)].view());
        if (action.gradient >= 0)
            call.weightGradients = gradientViews(action.gradient, tensors);
        m_kernels.run(call);
    }

    Memory& make(BufferId id, const LayerKernels::Made& made)
    {
        const auto [place, fresh] = m_memory.try_emplace(id);
        if (fresh) {
            place->second.dtype = made.dtype;
            place->second.bytes.resize(static_cast<std::size_t>(made.bytes.count()));
            const BufferClass& planned =
                m_schedule.sizes.buffers[static_cast<std::size_t>(m_schedule.buffers[static_cast<std::size_t>(id)])];
            if (planned.bytes != made.bytes)
                played.wrongSizes.push_back(fmt::format("{}: planned {}, made {}", planned.spec->name,
                                                        planned.bytes.count(), made.bytes.count()));
        }
        return place->second;
    }

    std::vector<TensorView> gradientViews(BufferId id, const std::vector<std::int32_t>& tensors)
    {
        Memory& memory = m_memory[id];
        memory.dtype = m_gradientType;
        std::int64_t elements = 0;
        for (const std::int32_t tensor : tensors)
            elements += m_parameters[static_cast<std::size_t>(tensor)].numel;
        memory.bytes.assign(static_cast<std::size_t>(bytesOf(elements, m_gradientType).count()), std::byte{0x7f});
        std::vector<TensorView> views;
        std::int64_t at = 0;
        for (const std::int32_t tensor : tensors) {
            const std::int64_t numel = m_parameters[static_cast<std::size_t>(tensor)].numel;
            views.push_back({memory.bytes.data() + bytesOf(at, m_gradientType).count(), numel, m_gradientType});
            at += numel;
        }
        return views;
    }

    bool isGradient(BufferId id) const
    {
        return std::any_of(m_gradients.begin(), m_gradients.end(), [id](const auto& e) { return e.buffer == id; });
    }

    void collectGradients()
    {
        for (const auto& entry : m_gradients) {
            std::int64_t at = 0;
            for (const std::int32_t tensor : m_kernels.tensorsOf(entry.layer, entry.module)) {
                const NamedParameter& parameter = m_parameters[static_cast<std::size_t>(tensor)];
                std::vector<float> values(static_cast<std::size_t>(parameter.numel));
                const Memory& memory = m_memory.at(entry.buffer);
                convertElements(memory.bytes.data() + bytesOf(at, m_gradientType).count(), m_gradientType,
                                values.data(), DType::Fp32, parameter.numel);
                std::vector<double>& sum = played.gradients[parameter.name];
                sum.resize(values.size(), 0.0);
                for (std::size_t i = 0; i < values.size(); ++i)
                    sum[i] += static_cast<double>(values[i]);
                at += parameter.numel;
            }
        }
    }

    std::int64_t tokens() const { return static_cast<std::int64_t>(m_batch.tokens.size()); }

    std::vector<NamedParameter> m_parameters;
    const Batch& m_batch;
    DType m_gradientType;
    std::unique_ptr<Device> m_device;
    LayerKernels m_kernels;
    std::vector<Memory> m_weights;
    Schedule m_schedule;
    std::vector<GradientKeeper::Entry> m_gradients;
    std::map<BufferId, Memory> m_memory;
};

} // namespace

Played play(const Model& model, const Training& training, const Weights& weights, const Batch& batch, int threads,
            DType gradientType)
{
    return Player(model, training, weights, batch, threads, gradientType).played;
}

} // namespace shardwright
