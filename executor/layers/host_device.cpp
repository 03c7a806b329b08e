#include "executor/layers/host_attention.hpp"
#include "executor/layers/host_launch.hpp"
#include "executor/layers/host_multiply.hpp"

namespace shardwright {

namespace {

class HostDevice : public Operations<HostLaunch> {
public:
    explicit HostDevice(int threads) : Operations(threads) {}

    void multiply(TensorView a, Transpose transposeA, TensorView b, Transpose transposeB, TensorView c, std::int64_t m,
                  std::int64_t n, std::int64_t k, bool add) override
    {
        hostMultiply(m_launch.pool, {a, transposeA, b, transposeB, c, m, n, k, add});
    }

    void attention(const AttentionShape& shape, const HeadsView& q, const HeadsView& k, const HeadsView& v,
                   const HeadsView& context, TensorView logSumExp) override
    {
        hostAttention(m_launch.pool, shape, q, k, v, context, logSumExp);
    }

    void attentionGradient(const AttentionShape& shape, const AttentionGradient& operands) override
    {
        hostAttentionGradient(m_launch.pool, shape, operands);
    }

    int threads() const override { return m_launch.pool.threads(); }
};

} // namespace

std::unique_ptr<Device> makeHostDevice(int threads)
{
    return std::make_unique<HostDevice>(threads);
}

} // namespace shardwright
