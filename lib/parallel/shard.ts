// Which positions of a sequence a rank holds.
import type { Piece } from "../ops/attention-options.ts";

/** The rows of a sequence that one of several ranks holds. */
export class SequenceShard {
  /** "contiguous": a stretch each. "zigzag": of twice as many stretches, one from the front and one from the back. */
  readonly layout: "contiguous" | "zigzag";
  /** Of the whole sequence. */
  readonly length: number;
  readonly ranks: number;
  readonly rank: number;
  /** Ascending; none where the rank holds nothing. */
  readonly pieces: readonly Piece[];
  /** Rows held. */
  readonly size: number;

  private constructor(layout: "contiguous" | "zigzag", length: number, ranks: number, rank: number) {
    this.layout = layout;
    this.length = length;
    this.ranks = ranks;
    this.rank = rank;
    const stretches = layout === "zigzag" ? 2 * ranks : ranks;
    const held = layout === "zigzag" ? [rank, stretches - 1 - rank] : [rank];
    this.pieces = held
      .map((stretch) => {
        const start = Math.floor((stretch * length) / stretches);
        return { start, length: Math.floor(((stretch + 1) * length) / stretches) - start };
      })
      .filter((piece) => piece.length > 0);
    this.size = this.pieces.reduce((sum, piece) => sum + piece.length, 0);
  }

  static whole(length: number): SequenceShard {
    return new SequenceShard("contiguous", length, 1, 0);
  }

  static contiguous(length: number, ranks: number, rank: number): SequenceShard {
    return new SequenceShard("contiguous", length, ranks, rank);
  }

  static zigzag(length: number, ranks: number, rank: number): SequenceShard {
    return new SequenceShard("zigzag", length, ranks, rank);
  }

  /** Another rank's. */
  of(rank: number): SequenceShard {
    return new SequenceShard(this.layout, this.length, this.ranks, rank);
  }
}
