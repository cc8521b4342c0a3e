"""What runs came to, side by side: read from records only, never by running anything."""
